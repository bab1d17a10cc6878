"""For everybody: checked by axe in each state, by keyboard alone, on narrow screens, from right to left."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from page_server import MODEL, PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

ANSWER = """### An answer

Some *words*, `code`, and [a link](https://example.org).

1. one
   - two

> quoted

| a | b |
|---|--:|
| 1 | 2 |

```python
print("a line of code that is far longer than the widest of all the screens that this page is ever looked at on")
```

- [x] done

![a picture](https://example.org/x.png)
"""


@pytest.fixture(scope="session")
def axe() -> str:
    """axe-core: the file that EDGEPACK_AXE names, else the one that comes with the browser extra."""
    if named := os.environ.get("EDGEPACK_AXE"):
        return Path(named).read_text("utf-8")
    carrier = pytest.importorskip("axe_playwright_python", reason="no axe-core: the browser extra is not installed")
    return (Path(carrier.__file__).parent / "axe.min.js").read_text("utf-8")


def ask(page: Page, text: str = "Why?") -> None:
    page.locator("#question").fill(text)
    page.keyboard.press("Enter")


def welcome(page: Page, server: PageServer) -> None:
    expect(page.locator("#welcome")).to_be_visible()


def answered(page: Page, server: PageServer) -> None:
    server.answer().thought("Hm.").text(ANSWER).end()
    ask(page)
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    page.locator("summary").click()


def answering(page: Page, server: PageServer) -> None:
    server.answer().text("The beginning of")
    ask(page)
    expect(page.locator(".body p")).to_be_visible()


def waiting(page: Page, server: PageServer) -> None:
    server.answer()
    ask(page)
    expect(page.locator(".waiting")).to_be_visible()


def editing(page: Page, server: PageServer) -> None:
    answered(page, server)
    page.get_by_role("button", name="Edit").click()


def refused(page: Page, server: PageServer) -> None:
    server.refuse(429, "Too many ask.", Retry_After="3")
    ask(page)
    expect(page.locator(".answer .note.fault")).to_be_visible()


def cut(page: Page, server: PageServer) -> None:
    server.answer().text("One, two,").end("length")
    ask(page)
    expect(page.locator(".answer .note")).to_be_visible()


def settings(page: Page, server: PageServer) -> None:
    page.get_by_role("button", name="Settings").click()


def token(page: Page, server: PageServer) -> None:
    server.token = "secret"
    page.reload()
    expect(page.locator("#token")).to_be_visible()


def several_models(page: Page, server: PageServer) -> None:
    server.facts["models"].append({**MODEL, "name": "another-model-with-a-long-name-of-many-parts", "state": "idle"})
    page.reload()
    expect(page.get_by_label("Model")).to_be_visible()


def kiosk(page: Page, server: PageServer) -> None:
    page.goto(f"{server.url}/?kiosk=1&title=Clocks")
    expect(page.locator("html.kiosk")).to_be_attached()


def kiosk_answered(page: Page, server: PageServer) -> None:
    kiosk(page, server)
    server.answer().text(ANSWER).end()
    ask(page)
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)


def status(page: Page, server: PageServer) -> None:
    server.facts["models"].append({**MODEL, "name": "qwen3", "state": "idle", "tokens_per_second": None})
    page.goto(f"{server.url}/status")
    expect(page.locator(".model")).to_have_count(2)


def status_gone(page: Page, server: PageServer) -> None:
    page.route("**/status.json", lambda route: route.abort())
    page.goto(f"{server.url}/status")
    expect(page.locator("#notice")).to_be_visible()


State = Callable[[Page, PageServer], None]
STATES: list[State] = [
    welcome, answered, answering, waiting, editing, refused, cut, settings, token, several_models,
    kiosk, kiosk_answered, status, status_gone,
]  # fmt: skip
WRONG = """async () => {
  const { violations } = await axe.run();
  return violations.map(({ id, nodes }) => [id, nodes.map((node) => [node.html, node.failureSummary])]);
}"""
WIDER = """() => {
  const whole = [document.documentElement, ...document.querySelectorAll("dialog[open]")];
  return whole.map((element) => element.scrollWidth - element.clientWidth);
}"""
STOP = """() => {
  const { innerText, ariaLabel, id, localName } = document.activeElement;
  return (innerText || ariaLabel || id || localName).split("\\n")[0];
}"""
OUTLINED = """() => {
  const { outlineStyle, outlineWidth } = getComputedStyle(document.activeElement);
  return outlineStyle !== "none" && parseFloat(outlineWidth) >= 2;
}"""


@pytest.mark.parametrize("view", [{"color_scheme": "light"}, {"color_scheme": "dark"}], ids=["light", "dark"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_axe_finds_nothing(page: Page, server: PageServer, state: State, view: dict[str, object], axe: str) -> None:
    page.emulate_media(reduced_motion="reduce")
    state(page, server)
    page.evaluate(axe)
    found = page.evaluate(WRONG)
    assert found == []


@pytest.mark.parametrize("view", [{"viewport": {"width": 320, "height": 640}}], ids=["320"])
@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_nothing_is_wider_than_320_pixels(
    page: Page, server: PageServer, state: State, view: dict[str, object]
) -> None:
    state(page, server)
    assert set(page.evaluate(WIDER)) == {0}
    for button in page.locator("button:visible, select:visible, textarea:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= 320


def test_all_by_keyboard(page: Page, server: PageServer) -> None:
    answered(page, server)
    page.reload()
    expect(page.locator("#question")).to_be_focused()
    page.locator(".skip").focus()
    stops = []
    for _ in range(13):
        stops.append(page.evaluate(STOP))
        assert page.evaluate(OUTLINED), f"the focus on {stops[-1]} is not to be seen"
        page.keyboard.press("Tab")
    assert stops == [
        "Skip to the question", "New chat", "Status", "Settings", "Dark theme", "Edit", "Copy", "Thoughts",
        "a link (example.org)", "a\tb", "Copy", stops[11], "Copy",
    ]  # fmt: skip
    assert stops[11].startswith("print(")


def test_skip_leads_to_the_question(page: Page) -> None:
    page.locator(".skip").focus()
    expect(page.locator(".skip")).to_be_in_viewport()
    page.keyboard.press("Enter")
    expect(page.locator("#question")).to_be_focused()


def test_dialogs_give_the_focus_back(page: Page) -> None:
    button = page.get_by_role("button", name="Settings")
    button.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#settings")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#settings")).to_be_hidden()
    expect(button).to_be_focused()


def test_enter_that_ends_a_word_of_an_input_method_does_not_send(page: Page, server: PageServer) -> None:
    page.locator("#question").fill("にほん")
    page.evaluate(
        "document.getElementById('question').dispatchEvent("
        "new KeyboardEvent('keydown', { key: 'Enter', isComposing: true, bubbles: true, cancelable: true }))"
    )
    expect(page.locator("#question")).to_have_value("にほん")
    assert server.bodies == []


def test_a_finished_answer_is_said_once_and_politely(page: Page, server: PageServer) -> None:
    page.evaluate(
        "() => { window.heard = []; new MutationObserver(() => heard.push(document.getElementById('said').textContent))"
        ".observe(document.getElementById('said'), { childList: true, subtree: true, characterData: true }); }"
    )
    answer = server.answer()
    ask(page)
    for word in ("One, ", "two, ", "three."):
        answer.text(word)
        expect(page.locator(".body")).to_contain_text(word.strip())
    answer.end()
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    assert page.evaluate("heard") == ["Waiting for the first word", "One, two, three."]
    live = page.evaluate(
        "[...document.querySelectorAll('[aria-live], [role=status], [role=alert], [role=log]')].map((e) => e.id)"
    )
    assert live == ["said"]


ARABIC = """النماذج **الصغيرة** هنا:

- سريعة
- `code` رخيصة

> اقتباس

| عمود | b |
|---|---|
| 1 | 2 |

English again.

```
print(1)
```
"""
DIRECTIONS = """() => {
  const found = [...document.querySelectorAll(".bubble, .body > *, .body td")];
  return found.map((element) => `${element.localName} ${getComputedStyle(element).direction}`);
}"""


def test_each_block_has_its_own_direction(page: Page, server: PageServer) -> None:
    server.answer(ARABIC)
    ask(page, "ما هي؟")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    found = page.evaluate(DIRECTIONS)
    assert found == ["div rtl", "p rtl", "ul rtl", "blockquote rtl", "div rtl", "td ltr", "td ltr", "p ltr", "div ltr"]
    page.locator("#question").fill("שלום")
    assert page.evaluate("getComputedStyle(document.getElementById('question')).direction") == "rtl"


@pytest.mark.parametrize("view", [{"viewport": {"width": 320, "height": 640}}], ids=["320"])
def test_a_page_of_a_right_to_left_language(page: Page, server: PageServer, view: dict[str, object]) -> None:
    answered(page, server)
    page.evaluate("document.documentElement.dir = 'rtl'")
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    box = page.locator(".bubble").bounding_box()
    assert box is not None
    assert box["x"] < 40


def test_nothing_moves_for_who_wants_no_motion(page: Page, server: PageServer) -> None:
    page.emulate_media(reduced_motion="reduce")
    waiting(page, server)
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") > 0


EDGE = """(place) => {
  const { borderTopStyle, borderTopColor } = getComputedStyle(document.querySelector(place));
  return [borderTopStyle, borderTopColor];
}"""


def test_forced_colours_keep_the_edges(page: Page, server: PageServer) -> None:
    page.emulate_media(forced_colors="active")
    refused(page, server)
    for place in (".bubble", ".box", ".note.fault", ".note.fault .secondary", "#open-settings"):
        style = page.evaluate(EDGE, place)
        assert style[0] == "solid"
        assert style[1] not in ("rgba(0, 0, 0, 0)", "transparent"), place
