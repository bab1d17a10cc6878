"""A thought and its answer, told apart however tokens cut them: as the whole text would be."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from pieces import tokenizer_of

from edgepack.bundle.thinking import Thinking
from edgepack.text.divider import Divider

FIRST = 256
THINK = Thinking(opening="<think>", closing="</think>", ending="\n</think>\n\n")
CHANNEL = Thinking(opening="<|channel>thought", closing="<channel|>", ending="<channel|>")
PARTS = ("<think>", "</think>", "<", "</", "think", ">", "\n", "  ", "a", "é", "🚀", "I </thin")


def told(pieces: list[bytes], begun: bool = False) -> tuple[str | None, str, Divider]:
    """Return the thought and the answer of pieces, a token each."""
    own = {piece: FIRST + index for index, piece in enumerate(dict.fromkeys(p for p in pieces if len(p) > 1))}
    divider = Divider(THINK, tokenizer_of(own, {}), at_start=False, begun=begun)
    parts = [*(divider.push(own.get(piece, piece[0])) for piece in pieces), divider.finish()]
    thought, answer = ("".join(part[place] for part in parts) for place in (0, 1))
    return thought if divider.thinks else None, answer, divider


def divided(text: str, begun: bool) -> tuple[str | None, str]:
    """Return the thought and the answer of a whole text."""
    said = text.lstrip()
    if not begun and not said.startswith("<think>"):
        return None, text
    thought, _, answer = (text if begun else said.removeprefix("<think>")).partition("</think>")
    return thought.strip(), answer.lstrip()


@st.composite
def texts(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    text = "".join(draw(st.lists(st.sampled_from(PARTS), max_size=10)))
    data = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(data)))) | {0, len(data)})
    return text, [piece for start, end in pairwise(cuts) if (piece := data[start:end])]


@given(texts(), st.booleans())
@example(("<think>a</think>b", [b"<think>a</think>b"]), False)
@example(("<think>a</think>b", [bytes([byte]) for byte in b"<think>a</think>b"]), False)
@example((" a </thi", [b" a", b" ", b"</thi"]), True)
@example(("\n<thin", [b"\n", b"<thin"]), False)
@example(("</think>é", [b"</think>\xc3", b"\xa9"]), True)
def test_pieces_are_divided_as_the_whole_text(told_as: tuple[str, list[bytes]], begun: bool) -> None:
    text, pieces = told_as
    thought, answer, divider = told(pieces, begun)
    assert (thought, answer) == divided(text, begun)
    assert divider.tokens <= len(pieces)
    if divider.answer_from is not None:
        assert b"".join(pieces[divider.answer_from :]).decode().strip() == answer.strip()


def test_what_is_counted() -> None:
    pieces = [b"<think>", b"\n", b"a", b"b", b"</think>", b"\n\n", b"c", b"d"]
    _, _, divider = told(pieces)
    assert (divider.tokens, divider.inside, divider.answer_from) == (5, 4, 5)
    _, _, divider = told(pieces[1:], begun=True)
    assert (divider.tokens, divider.inside, divider.answer_from) == (4, 4, 4)
    _, _, divider = told([b"<think>", b"a", b"</think>b"])
    assert (divider.tokens, divider.answer_from) == (3, None)
    _, _, divider = told([b"a", b"<think>"])
    assert (divider.tokens, divider.thinks) == (0, False)


def test_marks_that_are_special_tokens_have_no_text_and_are_found() -> None:
    tokenizer = tokenizer_of({b"thought": 300}, {301: "<|channel>", 302: "<channel|>", 303: "<turn|>"})
    cases = (
        ([301, 300, *b"\na", 302, *b"b"], "a", "b"),
        ([301, *b"thought", 303, *b"a", 302, 301, *b"b"], "a", "b"),  # no other token has text
        ([301, *b"there", 302, *b"b"], "", "thereb"),
        ([301], "", ""),
    )
    for ids, thought, answer in cases:
        divider = Divider(CHANNEL, tokenizer, at_start=False, begun=False)
        parts = [*map(divider.push, ids), divider.finish()]
        assert tuple("".join(part[place] for part in parts) for place in (0, 1)) == (thought, answer)


@pytest.mark.parametrize(
    ("said", "ending"),
    [("a", "\n</think>\n\n"), ("a\n", "</think>\n\n"), ("a</thi", "nk>\n\n"), ("", "\n</think>\n\n")],
)
def test_the_words_that_end_a_thought_go_on_from_where_it_is(said: str, ending: str) -> None:
    tokenizer = tokenizer_of({}, {})
    divider = Divider(THINK, tokenizer, at_start=False, begun=True)
    for token in said.encode():
        divider.push(token)
    assert divider.beyond(ord("x")) is None
    assert divider.cut() == ending
    for token in ending.rstrip().encode()[:-1]:
        divider.push(token)
    assert divider.beyond(ord(">")) == ""


def test_a_thought_that_is_cut_inside_a_character_ends_before_it() -> None:
    divider = Divider(THINK, tokenizer_of({}, {}), at_start=False, begun=True)
    told = [divider.push(token) for token in "né".encode()[:-1]]
    told += [divider.push(token) for token in f"{divider.cut()}é".encode()]
    assert tuple("".join(part[place] for part in told) for place in (0, 1)) == ("n", "é")
