"""How far two sequences agree: prompts and caches, answers and their repetitions, texts and what may begin in them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Return how many items two sequences have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def overlap(text: str, mark: str) -> int:
    """Return the length of the longest end of a text that begins a mark and is not yet all of it."""
    return next(
        (length for length in range(min(len(mark) - 1, len(text)), 0, -1) if mark.startswith(text[-length:])), 0
    )
