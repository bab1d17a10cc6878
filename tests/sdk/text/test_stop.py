"""Stop strings: the same result however the text is split, no leak, no loss."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from endings import cut
from hypothesis import example, given
from hypothesis import strategies as st

from edgepack.text.stop import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)
PIECES = st.lists(st.text("abc", max_size=6), max_size=8)


def run(stops: Sequence[str], pieces: Sequence[str]) -> tuple[list[str], str | None]:
    matcher = StopMatcher(stops)
    shown = [matcher.push(piece) for piece in pieces]
    return [*shown, matcher.finish()], matcher.matched


@given(STOPS, PIECES)
@example(["abc", "b"], ["ab", "c"])
@example(["aab", "ab"], ["aa", "ab"])
@example(["abab", "ba"], ["aba"])
def test_any_split_gives_the_result_of_the_whole_text(stops: list[str], pieces: list[str]) -> None:
    shown, matched = run(stops, pieces)
    assert ("".join(shown), matched) == cut("".join(pieces), stops)


@given(STOPS, PIECES)
def test_nothing_is_held_that_cannot_be_a_beginning(stops: list[str], pieces: list[str]) -> None:
    matcher = StopMatcher(stops)
    text = shown = ""
    for piece in pieces:
        text, shown = text + piece, shown + matcher.push(piece)
        if matcher.matched is not None:
            return
        held = text[len(shown) :]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
        assert not any(
            stop.startswith(text[-length:]) for stop in stops for length in range(len(held) + 1, len(text) + 1)
        )


def test_a_stop_over_several_pieces_never_shows() -> None:
    assert run(["\nUser:"], ["Fine.", "\nUs", "er", ": next"]) == (["Fine.", "", "", "", ""], "\nUser:")


def test_a_beginning_that_leads_nowhere_comes_out() -> None:
    assert run(["\nUser:"], ["Fine.", "\nUs", "ually"]) == (["Fine.", "", "\nUsually", ""], None)
    assert run(["\nUser:"], ["Fine.\nUse"]) == (["Fine.", "\nUse"], None)


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["."])
    assert [matcher.push("a.b"), matcher.push("c"), matcher.finish()] == ["a", "", ""]


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        StopMatcher(["a", ""])
