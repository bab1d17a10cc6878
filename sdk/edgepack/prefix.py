"""How far two sequences agree: prompts and caches, answers and their repetitions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile


def common_length(a: Sequence[object], b: Sequence[object]) -> int:
    """Return how many items two sequences have in common from their beginning."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))
