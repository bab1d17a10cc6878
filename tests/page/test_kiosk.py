"""The screen that strangers share: one field, nothing that leads away, and a new beginning when nobody is there."""

from __future__ import annotations

import pytest
from page_server import PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import BrowserContext, Page, expect

pytestmark = pytest.mark.browser


def open_kiosk(context: BrowserContext, server: PageServer, more: str = "", *, drawing: bool = False) -> Page:
    """Open it with a clock that stands still, or that goes on by itself too, as drawing what has come by now needs."""
    page = context.new_page()
    page.clock.install(time="2026-03-01T12:00:00")
    if not drawing:
        page.clock.pause_at("2026-03-01T12:00:01")
    page.goto(f"{server.url}/?kiosk=1{more}")
    expect(page.locator("html.kiosk")).to_be_attached()
    return page


def ask(page: Page, text: str = "How old is the clock?") -> None:
    page.locator("#question").fill(text)
    page.get_by_role("button", name="Send").click()


def test_there_is_one_field_and_no_way_out(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server)
    server.answer("See [this](https://example.org), `code`:\n```\nls\n```")
    ask(page)
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    assert [each for each in page.locator("a").all() if each.get_attribute("class") != "skip"] == []
    expect(page.locator(".body p").first).to_have_text("See this (https://example.org), code:")
    shown = [each.inner_text() or each.get_attribute("aria-label") for each in page.locator("button:visible").all()]
    assert shown == ["Start over", "Send"]


def test_the_texts_are_text(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, "&title=<b>Clocks</b>&welcome=<img src=x onerror=alert(1)>Ask!")
    expect(page.locator("#welcome-title")).to_have_text("<b>Clocks</b>")
    expect(page.locator("#welcome-text")).to_have_text("<img src=x onerror=alert(1)>Ask!")
    assert page.title() == "<b>Clocks</b>"


def test_it_begins_anew_when_nobody_is_there(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, "&idle=30")
    server.answer("It is old.")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is old.")
    page.locator("#question").fill("left behind")
    page.clock.run_for(19_000)
    expect(page.locator("#idle")).to_be_hidden()
    page.clock.run_for(2_000)
    expect(page.locator("#idle")).to_be_visible()
    expect(page.locator("#said")).to_have_text("Is anybody there? Touch the screen to go on.")
    page.clock.run_for(10_000)
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#idle")).to_be_hidden()
    expect(page.locator(".question")).to_have_count(0)
    expect(page.locator("#question")).to_have_value("")
    expect(page.locator("#question")).not_to_be_focused()
    server.answer("Hello.")
    ask(page, "Hello?")
    expect(page.locator(".answer .body")).to_have_text("Hello.")
    assert [each["content"] for each in server.bodies[1]["messages"]] == ["Hello?"]


def test_whoever_touches_the_screen_goes_on(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, "&idle=30")
    server.answer("It is old.")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is old.")
    page.clock.run_for(25_000)
    expect(page.locator("#idle")).to_be_visible()
    page.mouse.move(300, 300)
    expect(page.locator("#idle")).to_be_hidden()
    page.clock.run_for(19_000)
    expect(page.locator(".question")).to_have_count(1)


def test_an_answer_on_its_way_is_waited_for(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, "&idle=30", drawing=True)
    answer = server.answer().text("It is")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is")
    page.clock.run_for(120_000)
    expect(page.locator(".answer .body")).to_have_text("It is")
    answer.text(" old.").end()
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    page.clock.run_for(60_000)
    expect(page.locator("#welcome")).to_be_visible()


@pytest.mark.parametrize(
    ("given", "seconds"),
    [("", 60), ("&idle=5", 5), ("&idle=1", 5), ("&idle=x", 60), ("&idle=-3", 60), ("&idle=1e9", 60)],
)
def test_idle_is_a_number_of_seconds(context: BrowserContext, server: PageServer, given: str, seconds: int) -> None:
    page = open_kiosk(context, server, given)
    page.locator("#question").fill("left behind")
    page.clock.run_for(seconds * 1000 - 1000)
    expect(page.locator("#question")).to_have_value("left behind")
    page.clock.run_for(2000)
    expect(page.locator("#question")).to_have_value("")


def test_idle_0_never_begins_anew(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, "&idle=0")
    page.locator("#question").fill("left behind")
    page.clock.run_for(3_600_000)
    expect(page.locator("#question")).to_have_value("left behind")


def test_nothing_is_kept(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server)
    server.answer("It is old.")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is old.")
    assert page.evaluate("sessionStorage.length + localStorage.length + document.cookie.length") == 0
    page.reload()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator(".question")).to_have_count(0)


def test_start_over_begins_anew(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server, drawing=True)
    answer = server.answer().text("It is")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is")
    page.get_by_role("button", name="Start over").click()
    expect(page.locator("#welcome")).to_be_visible()
    assert answer.left.wait(10)


def test_no_menu_and_no_selection(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server)
    server.answer("It is old.")
    ask(page)
    expect(page.locator(".answer .body")).to_have_text("It is old.")
    refused = (
        "(name) => !document.querySelector('.body').dispatchEvent(new Event(name, { bubbles: true, cancelable: true }))"
    )
    assert [page.evaluate(refused, name) for name in ("contextmenu", "dragstart", "drop")] == [True, True, True]
    page.locator(".body p").dblclick()
    assert page.evaluate("getSelection().toString()") == ""


def test_the_line_break_of_a_keyboard_on_the_screen_sends(context: BrowserContext, server: PageServer) -> None:
    page = open_kiosk(context, server)
    server.answer("It is old.")
    page.locator("#question").fill("How old?")
    page.evaluate(
        "document.getElementById('question').dispatchEvent("
        "new InputEvent('beforeinput', { inputType: 'insertLineBreak', bubbles: true, cancelable: true }))"
    )
    expect(page.locator(".answer .body")).to_have_text("It is old.")


@pytest.mark.parametrize("view", [{"viewport": {"width": 1024, "height": 600}, "has_touch": True}])
def test_what_is_touched_is_large(context: BrowserContext, server: PageServer, view: dict[str, object]) -> None:
    page = open_kiosk(context, server)
    server.refuse(429, "Too many ask.", Retry_After="3")
    ask(page)
    expect(page.locator(".answer .note.fault")).to_be_visible()
    for button in page.locator("button:visible").all():
        box = button.bounding_box()
        assert box is not None
        assert min(box["width"], box["height"]) >= 48
    field = page.locator(".box").bounding_box()
    assert field is not None
    assert field["height"] >= 72


@pytest.mark.parametrize("view", [{"viewport": {"width": 800, "height": 480}, "has_touch": True}])
def test_the_field_stays_in_sight_above_a_keyboard(
    context: BrowserContext, server: PageServer, view: dict[str, object]
) -> None:
    page = open_kiosk(context, server)
    page.set_viewport_size({"width": 800, "height": 260})  # what is left of it
    page.locator("#question").tap()
    expect(page.locator("#question")).to_be_in_viewport(ratio=1)
    server.answer("line\n\n" * 40)
    ask(page)
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1)
    expect(page.locator("#question")).to_be_in_viewport(ratio=1)
