"""What the page's files may hold. No browser is needed for it."""

from __future__ import annotations

import re

import pytest
from page_server import PAGE

NAMES = sorted(each.name for each in PAGE.iterdir())
TEXTS = {name: (PAGE / name).read_text("utf-8") for name in NAMES}
SCRIPTS = [name for name in NAMES if name.endswith(".js")]
PAGES = [name for name in NAMES if name.endswith(".html")]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_is_short_and_of_a_kind_that_is_served(name: str) -> None:
    assert name.rpartition(".")[2] in ("html", "css", "js", "svg")
    assert TEXTS[name].count("\n") < 400


@pytest.mark.parametrize("name", NAMES)
def test_nothing_comes_from_elsewhere(name: str) -> None:
    addresses = set(re.findall(r"\b(?:https?|wss?):\/\/[\w.]+", TEXTS[name]))
    assert addresses <= {"http://www.w3.org"}  # the name of SVG, which nothing fetches
    assert not re.search(r"@import|url\(", TEXTS[name])


@pytest.mark.parametrize("name", PAGES)
def test_a_page_holds_no_script_no_style_and_no_words(name: str) -> None:
    text = TEXTS[name]
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", text) == []
    referred = set(re.findall(r'(?:href|src)="static/([^"]+)"', text))
    assert referred <= set(NAMES)
    outside = re.sub(r"<title>.*?</title>|<noscript>.*?</noscript>|<h1.*?</h1>|<[^>]*>", "", text)
    assert outside.strip() == ""


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_parses_no_text_as_markup_or_code(name: str) -> None:
    markup = r"innerHTML|outerHTML|insertAdjacentHTML|setHTML|document\.write|DOMParser|createContextualFragment|srcdoc"
    unsafe = rf"{markup}|\beval\b|new Function"
    assert re.findall(unsafe, TEXTS[name]) == []
    assert set(re.findall(r'(?:from|import) "\./([^"]+)"', TEXTS[name])) <= set(NAMES)


def test_each_script_is_reached_from_a_page() -> None:
    reached = {name for page in PAGES for name in re.findall(r'src="static/([^"]+)"', TEXTS[page])}
    while more := {name for each in reached for name in re.findall(r'from "\./([^"]+)"', TEXTS[each])} - reached:
        reached |= more
    assert reached == set(SCRIPTS)


def test_each_word_is_said_somewhere_and_each_that_is_said_is_there() -> None:
    known = set(re.findall(r"^  (\w+):", TEXTS["words.js"], re.M))
    said = {word for name in NAMES if name != "words.js" for word in re.findall(r"\bwords\.(?!js)(\w+)", TEXTS[name])}
    said |= {word for page in PAGES for word in re.findall(r'data-(?:word|label|hint)="(\w+)"', TEXTS[page])}
    assert said == known


def test_each_drawing_is_drawn_somewhere() -> None:
    known = set(re.findall(r"^  (\w+): \[", TEXTS["icons.js"], re.M))
    said = {word for page in PAGES for word in re.findall(r'data-icon="(\w+)"', TEXTS[page])}
    said |= {
        word for name in SCRIPTS for word in re.findall(r'(?:icon|button|again)\((?:copied \? )?"(\w+)"', TEXTS[name])
    }
    said.discard("secondary")
    assert known - said <= {"copy", "done"}  # both stand in one expression
