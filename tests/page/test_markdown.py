"""Markdown as the page draws it: what models write, what strangers have them write, and that it stays quick."""

from __future__ import annotations

import json

import pytest
from page_server import PageServer

pytest.importorskip("playwright", reason="the browser extra is not installed")

from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

SHOW = """async (text) => {
  const [{ blocks }, { rendered }] = [await import("/static/blocks.js"), await import("/static/render.js")];
  const place = document.createElement("div");
  for (const block of blocks(text)) place.append(rendered(block, { links: true, copy: false }));
  place.className = "body";
  document.getElementById("turns").replaceChildren(place);
  return place.innerHTML;
}"""
BARE = [
    ' dir="auto"',
    ' dir="ltr"',
    ' tabindex="0"',
    ' role="group"',
    ' aria-label="Code"',
    ' aria-label="Table"',
    ' scope="col"',
]


@pytest.fixture(scope="module")
def drawing(browser: object) -> object:
    """One page for all texts that are only drawn."""
    from page_server import page_server

    with page_server() as served:
        page = browser.new_page()  # type: ignore[attr-defined]
        page.goto(served.url)
        page.wait_for_selector("#model > *")
        yield page
        page.close()


def drawn(page: Page, text: str) -> str:
    html: str = page.evaluate(SHOW, text)
    for each in BARE:
        html = html.replace(each, "")
    return html


CODE = '<div class="code"><div class="code-head"><span>Code</span></div><pre>'
CASES = {
    "plain": ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
    "emphasis": (
        "*a* **b** ***c*** _d_ ~~e~~",
        "<p><em>a</em> <strong>b</strong> <em><strong>c</strong></em> <em>d</em> <s>e</s></p>",
    ),
    "nested emphasis": ("**a *b* c**", "<p><strong>a <em>b</em> c</strong></p>"),
    "emphasis within emphasis": ("*a **b***", "<p><em>a <strong>b</strong></em></p>"),
    "names with underscores": ("snake_case_name and 2 * 3 * 4", "<p>snake_case_name and 2 * 3 * 4</p>"),
    "emphasis beside Chinese": ("**中文。**中文", "<p><strong>中文。</strong>中文</p>"),
    "unclosed emphasis": ("**bold without end", "<p>**bold without end</p>"),
    "code": ("`a` ``b ` c`` `open", "<p><code>a</code> <code>b ` c</code> `open</p>"),
    "escapes": (r"\*not\* \`this\` \\ &lt; &copy;", "<p>*not* `this` \\ &lt; &amp;copy;</p>"),
    "an escaped tick before ticks": ("\\``` a", "<p>``` a</p>"),
    "headings": (
        "# A\n## B ##\n####### no\n#no",
        '<h3 class="level-1">A</h3><h3 class="level-2">B</h3><p>####### no<br>#no</p>',
    ),
    "rules": ("a\n\n---\n***\n- - -", "<p>a</p><hr><hr><hr>"),
    "quotes": ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote><p>c</p>"),
    "lists": (
        "- a\n- b\n  - c\n\n1. d\n2. e",
        "<ul><li>a</li><li>b<ul><li>c</li></ul></li></ul><ol><li>d</li><li>e</li></ol>",
    ),
    "a list that begins later": ("3. a\n4. b", '<ol start="3"><li>a</li><li>b</li></ol>'),
    "a list less indented than it should be": ("1. a\n  - b\n2. c", "<ol><li>a<ul><li>b</li></ul></li><li>c</li></ol>"),
    "a loose list": ("- a\n\n- b", '<ul class="loose"><li>a</li><li>b</li></ul>'),
    "paragraphs in a list": ("1. a\n\n   b", "<ol><li>a<p>b</p></li></ol>"),
    "a list after a paragraph": ("so:\n- a\n* b", "<p>so:</p><ul><li>a</li><li>b</li></ul>"),
    "a number at the beginning of a line": ("It was in\n1984. Then.", "<p>It was in<br>1984. Then.</p>"),
    "tasks": (
        "- [ ] a\n- [x] b",
        '<ul><li class="with-task"><span class="task">☐ To do: </span>a</li>'
        '<li class="with-task"><span class="task">☑ Done: </span>b</li></ul>',
    ),
    "code blocks": (
        "~~~\n`a`\n\n  <b>\n~~~\nc",
        f"{CODE}<code>`a`\n\n  &lt;b&gt;</code></pre></div><p>c</p>",
    ),
    "an unclosed fence": (
        "```\nif a:\n  b",
        f"{CODE}<code>if a:\n  b</code></pre></div>",
    ),
    "a fence in a list": (
        "- a\n  ```\n  b\n   c\n  ```\n- d",
        f"<ul><li>a{CODE}<code>b\n c</code></pre></div></li><li>d</li></ul>",
    ),
    "tables": (
        "|a|b|\n|:-:|--:|\n|1|`x\\|y`|\n|2|\n\nc",
        '<div class="table"><table><thead><tr><th class="center">a</th><th class="end">b</th></tr></thead><tbody>'
        '<tr><td class="center">1</td><td class="end"><code>x|y</code></td></tr>'
        '<tr><td class="center">2</td><td class="end"></td></tr></tbody></table></div><p>c</p>',
    ),
    "a bar that is no table": ("a | b\nc", "<p>a | b<br>c</p>"),
    "line breaks of cells": ("a<br>b", "<p>a<br>b</p>"),
    "a picture without words": (
        "![](x.png)",
        '<p><span class="picture">Picture (<bdi class="target">x.png</bdi>)</span></p>',
    ),
    "an unfinished link": (
        "[a](https://x",
        '<p>[a](<a href="https://x/" target="_blank" rel="noopener noreferrer" title="https://x/">https://x</a></p>',
    ),
    "brackets": ("[1] a [b] ![c] ]", "<p>[1] a [b] ![c] ]</p>"),
}


@pytest.mark.parametrize("name", CASES)
def test_markdown(drawing: Page, name: str) -> None:
    text, html = CASES[name]
    assert drawn(drawing, text) == html


LINKS = {
    "[a](https://example.org/b?c=1)": ("https://example.org/b?c=1", "a (example.org)"),
    "[**a**](<http://example.org> 'title')": ("http://example.org/", "a (example.org)"),
    "see https://example.org/a_(b), then": ("https://example.org/a_(b)", "https://example.org/a_(b)"),
    "**https://example.org**": ("https://example.org/", "https://example.org"),
    "<https://example.org/a>": ("https://example.org/a", "https://example.org/a"),
    "[mail](mailto:a@example.org)": ("mailto:a@example.org", "mail (a@example.org)"),
    "[bank](https://bank.example@evil.example/)": ("https://bank.example@evil.example/", "bank (evil.example)"),
    "[bank](https://\u0440\u0430\u0443\u0440\u0430l.example/)": (
        "https://xn--l-7sba6dbr.example/",
        "bank (xn--l-7sba6dbr.example)",
    ),
    "[![a](https://x.example/y.png)](https://example.org)": (
        "https://example.org/",
        "Picture: a (https://x.example/y.png) (example.org)",
    ),
}


@pytest.mark.parametrize("text", LINKS)
def test_a_link_shows_where_it_goes(drawing: Page, text: str) -> None:
    drawn(drawing, text)
    link = drawing.locator(".body a")
    assert (link.get_attribute("href"), link.inner_text()) == LINKS[text]
    assert (link.get_attribute("rel"), link.get_attribute("target")) == ("noopener noreferrer", "_blank")


NO_LINKS = [
    "javascript:alert(1)",
    "JaVaScRiPt:alert(1)",
    "java\tscript:alert(1)",
    "&#106;avascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "vbscript:x",
    "file:///etc/passwd",
    "blob:http://a/b",
    "//evil.example",
    "/v1/models",
    "?kiosk=1",
    "#top",
    "https://",
    "https://a b",
    "http:evil.example",
    "https://x\u0000y",
]


@pytest.mark.parametrize("address", NO_LINKS)
@pytest.mark.parametrize("form", ["[a]({})", "[a](<{}>)", "<{}>", "[a]({} 'b')", "{}"])
def test_other_addresses_are_no_links(drawing: Page, address: str, form: str) -> None:
    drawn(drawing, form.format(address))
    hrefs = drawing.evaluate("[...document.querySelectorAll('.body a')].map((a) => a.protocol)")
    assert hrefs in ([], ["http:"], ["https:"])  # a part of the text may be an address of the web by itself
    assert drawing.locator(".body a[href^='javascript']").count() == 0
    assert not {"/v1/models", "?kiosk=1", "#top"} & set(
        drawing.evaluate("[...document.querySelectorAll('.body a')].map((a) => a.getAttribute('href'))")
    )


HOSTILE = [
    "<script>window.hit = 1</script>",
    "<img src=x onerror='window.hit = 1'>",
    "<svg onload='window.hit = 1'></svg>",
    "<iframe src='https://evil.example'></iframe>",
    "<style>* { display: none }</style><link rel=stylesheet href=https://evil.example/x.css>",
    "<a href='javascript:window.hit = 1' onclick='window.hit = 1'>a</a>",
    "<details open ontoggle='window.hit = 1'>",
    "<form action=https://evil.example><button>a</button></form>",
    "![a](https://evil.example/x.png) ![](data:image/svg+xml,<svg/onload=window.hit=1>)",
    "```\" onmouseover='window.hit = 1'\ncode\n```",
    "```<script>window.hit=1</script>\ncode\n```",
    "|<img src=x onerror=window.hit=1>|\n|-|\n|<script>window.hit=1</script>|",
    '[a](https://example.org/" onclick="window.hit=1)',
    "[<img src=x onerror=window.hit=1>](https://example.org)",
    "&lt;script&gt;window.hit=1&lt;/script&gt;",
    "<meta http-equiv=refresh content='0;url=https://evil.example'>",
    "<base href=https://evil.example>",
    "{{constructor.constructor('window.hit=1')()}} ${window.hit=1}",
    "\u202e\u2066<b>\u0000\ufffe",
]
ALLOWED = {
    "p", "h3", "hr", "br", "blockquote", "div", "span", "pre", "code", "ul", "ol", "li", "table", "thead", "tbody",
    "tr", "th", "td", "em", "strong", "s", "a", "bdi",
}  # fmt: skip
ATTRIBUTES = {"dir", "class", "tabindex", "role", "aria-label", "start", "scope", "href", "target", "rel", "title"}


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_becomes_markup(drawing: Page, text: str) -> None:
    for form in (text, f"- {text}", f"> {text}", f"**{text}**", f"`{text}`"):
        drawn(drawing, form)
        names = drawing.evaluate(
            "(() => { const all = [...document.querySelectorAll('.body *')]; return [all.map((e) => e.localName), "
            "all.flatMap((e) => e.getAttributeNames())]; })()"
        )
        assert set(names[0]) <= ALLOWED
        assert set(names[1]) <= ATTRIBUTES
    assert drawing.evaluate("window.hit") is None


def test_a_hostile_answer_reaches_for_nothing(page: Page, server: PageServer) -> None:
    server.answer("\n\n".join(HOSTILE))  # each request elsewhere and each violation would fail at the fixture's end
    page.locator("#question").fill("Go")
    page.keyboard.press("Enter")
    expect(page.locator(".answer[aria-busy=false] .picture")).to_have_count(2)
    assert page.evaluate("window.hit") is None


def test_the_browser_itself_refuses_injected_markup(drawing: Page) -> None:
    """The policy has the browser refuse what no code of the page does, for the day when some does."""
    thrown = drawing.evaluate(
        "() => { try { document.body.innerHTML = '<b>a</b>'; return ''; } catch (error) { return error.name; } }"
    )
    assert thrown == "TypeError"


def test_a_response_cut_anywhere_gives_the_same_events(drawing: Page) -> None:
    fields = ': ping\r\n\r\ndata: {"a": "ü"}\r\n\r\ndata:b\ndata: c\n\nevent: x\ndata: d\r\rid: 7\n'
    stream = f"{fields}data: [DONE]\n\ndata: unfinished"
    found = drawing.evaluate(
        """async (text) => {
          const { events } = await import("/static/sse.js");
          const bytes = new TextEncoder().encode(text);
          const all = [];
          for (let size = 1; size <= bytes.length; size += 1) {
            const parts = [];
            for (let at = 0; at < bytes.length; at += size) parts.push(bytes.slice(at, at + size));
            const stream = new ReadableStream({ start(to) { parts.forEach((part) => to.enqueue(part)); to.close(); } });
            const data = [];
            for await (const each of events(stream)) data.push(each);
            all.push(JSON.stringify(data));
          }
          return [...new Set(all)];
        }""",
        stream,
    )
    assert [json.loads(each) for each in found] == [['{"a": "ü"}', "b\nc", "d", "[DONE]"]]


GROWN = """async ([text, size]) => {
  const { Growing } = await import("/static/growing.js");
  const ways = { links: true, copy: true };
  const [place, whole] = [document.createElement("div"), document.createElement("div")];
  const growing = new Growing(place, ways);
  for (let end = size; end < text.length + size; end += size) growing.finish(text.slice(0, end));
  new Growing(whole, ways).finish(text);
  return [place.innerHTML, whole.innerHTML];
}"""


MIXED = """1. one

3
3. three
-x
- a
-x
- b
  - c
> d
| e | f
|--
|---|--:
| 1 | 2
|3|4|
#
# g
"""
GROWING = {
    "all of them": "\n\n".join(text for name, (text, _) in CASES.items() if name != "an unclosed fence"),
    "lines of Windows": "a\r\n\r\n- b\r\n- c\r\n\r\n```x\r\nd\r\n```\r\n\r\ne",
    "what changes its mind": MIXED * 3,
}


@pytest.mark.parametrize("size", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("name", GROWING)
def test_a_text_that_grows_ends_as_one_that_is_whole(drawing: Page, name: str, size: int) -> None:
    grown, whole = drawing.evaluate(GROWN, [GROWING[name], size])
    assert grown == whole


def test_what_is_read_out_is_words(drawing: Page) -> None:
    text = "# A *title*\n\none\n**two** [three](https://x.example) ![four](y)\n\n- `five`\n  - six\n\n> seven\n\n"
    text += "|a|b|\n|-|-|\n|*1*|2|\n\n---\n```py\ncode()\n```"
    spoken = drawing.evaluate('async (text) => (await import("/static/spoken.js")).spoken(text)', text)
    assert spoken == "A title\none two three four\nfive\nsix\nseven\na, b\n1, 2\ncode()"


PATIENCE_MS = 60_000  # of a machine that does much else
LARGE = {
    "words": "word " * 200_000,
    "one word": "x" * 1_000_000,
    "code": "```\n" + "some = code(1)\n" * 70_000,
    "paragraphs": "A paragraph of *some* words.\n\n" * 34_000,
    "a list": "- item `x`\n" * 90_000,
    "a table": "|a|b|c|\n|-|-|-|\n" + "|1|2|3|\n" * 40_000,
    "a wide table": "|a" * 3_000 + "|\n" + "|-" * 3_000 + "|\n" + "|1" * 3_000,
    "deep lists": "\n".join(" " * (2 * depth) + "- a" for depth in range(900)),
    "deep quotes": ">" * 500_000 + " a",
    "stars": "*" * 1_000_000,
    "stars and words": "**a " * 250_000,
    "closing stars": "a** " * 250_000,
    "both": "*a_b" * 250_000,
    "brackets": "[" * 1_000_000,
    "closed brackets": "[a](" * 250_000,
    "nested links": "[" * 300_000 + "](a)" * 150_000,
    "pictures": "![" * 400_000 + "](a)" * 50_000,
    "ticks": "".join("`" * (n % 700) + "a" for n in range(2_800)),
    "addresses": "https://a.example/" + "https://a.example/).)., " * 40_000,
    "one address": "https://" + "a" * 1_000_000,
    "angles": "<https://" * 110_000,
    "entities": "&amp" * 250_000,
    "spaces in a heading": "# a" + " #" * 200_000 + " " * 500_000 + "b",
    "rules that are none": ("- " * 400_000) + "a",
    "escapes": "\\" * 1_000_000,
    "indents": (" " * 1000 + "a\n") * 1000,
    "blank lines": "\n" * 1_000_000,
    "fences": "```a`\n" * 160_000,
}


PARSE = """([name, text]) => {
  setTimeout(async () => {
    const [{ blocks }, { inline }] = [await import("/static/blocks.js"), await import("/static/inline.js")];
    const depth = (all) => 1 + Math.max(0, ...(all ?? []).slice(0, 1000).map((each) => depth(each.children)));
    let deepest = 0;
    const walk = (block, level) => {
      deepest = Math.max(deepest, level);
      for (const each of block.blocks ?? block.items ?? []) walk(each, level + 1);
      if (block.kind === "code") return;
      for (const text of [block.text ?? "", block.head ?? [], block.rows ?? []].flat(2)) {
        deepest = Math.max(deepest, level + depth(inline(text)));
      }
    };
    for (const block of blocks(text)) walk(block, 1);
    window.parsed = [name, deepest];
  });
}"""


@pytest.mark.parametrize("name", LARGE)
def test_a_text_of_a_megabyte_is_parsed_in_linear_time(drawing: Page, name: str) -> None:
    """What is quadratic does not end within any patience; what nests without an end would break the browser."""
    drawing.evaluate(PARSE, [name, LARGE[name]])
    drawing.wait_for_function("(name) => window.parsed?.[0] === name", arg=name, timeout=PATIENCE_MS)
    assert drawing.evaluate("window.parsed[1]") <= 2 * 12 + 2 * 32


@pytest.mark.parametrize("name", ["words", "code", "paragraphs", "a list"])
def test_the_page_still_hears_its_reader_while_a_megabyte_comes(page: Page, server: PageServer, name: str) -> None:
    answer = server.answer()
    page.locator("#question").fill("Go")
    page.keyboard.press("Enter")
    text = LARGE[name]
    for at in range(0, len(text), 4000):
        answer.text(text[at : at + 4000])
    page.locator("#question").press_sequentially("still here", timeout=PATIENCE_MS)
    expect(page.locator("#question")).to_have_value("still here", timeout=PATIENCE_MS)
    expect(page.locator(".answer")).to_have_attribute("aria-busy", "true")
    page.keyboard.press("Escape")
    expect(page.locator(".answer[aria-busy=false]")).to_have_count(1, timeout=PATIENCE_MS)
    answer.cut()
