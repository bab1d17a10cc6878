"""The bookkeeping of a KV cache, and the guesses of prompt lookup: pure, on ids."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from edgepack.decoding.cache import Cache
from edgepack.decoding.lookup import NGRAM, Lookup


def filled(*steps: list[int]) -> Cache:
    cache = Cache()
    for step in steps:
        cache.append(step)
    return cache


def test_the_trail_counts_equal_steps() -> None:
    cache = filled([1, 2, 3, 4], [5, 6, 7, 8], [9], [10], [11])
    assert cache.trail == ((4, 4, 2), (1, 1, 3))
    cache.cut(6)
    assert (cache.tokens, cache.trail) == ([1, 2, 3, 4, 5, 6], ((4, 4, 1), (2, 4, 1)))
    cache.append([7, 8])
    cache.cut(5)
    assert cache.trail == ((4, 4, 1), (1, 4, 1))  # what is cut twice was still evaluated as one step
    cache.cut(0)
    assert (cache.tokens, cache.trail) == ([], ())


def test_a_prompt_takes_over_what_is_common_and_leaves_one_token() -> None:
    cache = filled([1, 2, 3, 4], [5], [6])
    assert cache.shared([1, 2, 3, 4, 5, 6, 7]) == 6
    assert cache.shared([1, 2, 3, 4, 5, 6]) == 5  # the last is evaluated for its logits
    assert cache.shared([1, 2, 3, 9]) == 3
    assert cache.shared([1, 2, 3, 4, 9]) == 4


def test_an_exact_share_has_the_steps_of_a_prefill_from_nothing() -> None:
    cache = filled([1, 2, 3, 4], [5, 6, 7, 8], [9], [10])
    assert cache.shared([*range(1, 20)], 4) == 8
    assert cache.shared([*range(1, 9)], 4) == 4
    assert cache.shared([*range(1, 20)], 8) == 0
    assert filled([1, 2, 3], [4, 5, 6, 7]).shared([*range(1, 20)], 4) == 0
    cache.cut(6)
    assert cache.shared([*range(1, 20)], 4) == 4
    cut = filled([1, 2, 3, 4, 5])
    cut.cut(4)
    assert cut.shared([*range(1, 20)], 4) == 0  # four of a step of five are not a step of four


def test_what_was_chosen_stands_after_the_cache_until_it_changes() -> None:
    cache = filled([1, 2, 3])
    for change in (lambda: cache.append([4]), lambda: cache.cut(2)):
        cache.chosen = 9
        assert cache.said == [*cache.tokens, 9]
        change()
        assert cache.said == cache.tokens


@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=6),
    st.lists(st.integers(0, 2), min_size=1, max_size=30),
    st.integers(0, 30),
)
def test_what_is_shared_is_a_common_beginning(steps: list[list[int]], prompt: list[int], length: int) -> None:
    cache = filled(*steps)
    cache.cut(min(length, len(cache.tokens)))
    assert sum(kept for kept, _ in cache.steps) == len(cache.tokens)
    for share in (cache.shared(prompt), cache.shared(prompt, 4)):
        assert share < len(prompt)
        assert cache.tokens[:share] == prompt[:share]
    assert share in (0, *accumulate(kept for kept, _ in cache.steps))


def test_a_guess_is_what_followed_the_last_time() -> None:
    lookup = Lookup([1, 2, 3, 4, 5, 9, 1, 2, 3])
    assert lookup.guess(10) == [4, 5, 9]
    assert lookup.guess(2) == [4, 5]
    assert lookup.guess(0) == []
    lookup.append(7)
    assert lookup.guess(10) == []
    for token in (1, 2, 3):
        lookup.append(token)
    assert lookup.guess(1) == [7]  # the latest place counts


def test_nothing_is_guessed_from_fewer_tokens_than_an_ngram() -> None:
    assert Lookup([1] * NGRAM).guess(4) == []
    assert Lookup([1] * (NGRAM + 1)).guess(4) == [1]


def test_guesses_grow_while_they_are_right() -> None:
    lookup = Lookup([1, 2, 3, *range(10, 80), 1, 2, 3])
    lengths = []
    for right in (3, 6, 15, 31, 31, 20, 14, 1, 0, 1):
        lengths.append(len(lookup.guess(100)))
        lookup.pace.learn(lengths[-1], right)
    # After a wrong guess the next step, with its first token, is no longer than the last one was right.
    assert [*lengths, len(lookup.guess(100))] == [3, 6, 15, 31, 31, 31, 15, 6, 1, 1, 3]


def test_a_guess_that_was_cut_short_counts_as_one() -> None:
    lookup = Lookup([1, 2, 3, *range(10, 80), 1, 2, 3])
    assert len(lookup.guess(2)) == 2
    lookup.pace.learn(2, 2)
    assert len(lookup.guess(100)) == 6
