"""Which sequences are computed together where an engine takes only those that follow each other."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

RESTING: Final = 2
"""Sequences between two others that are computed for nothing, rather than the weights read once more: where a step of
one takes 21 ms and a step of eight 71 (135M weights in 4 bits, on a core with AVX2), that costs as much as two."""


def spans(wanted: Iterable[int], may_rest: Callable[[int], bool]) -> list[range]:
    """Return ranges that hold the sequences that are wanted, in order, and few others: such as may be computed for
    nothing."""
    found: list[range] = []
    for each in sorted(wanted):
        between = range(found[-1].stop, each) if found else None
        if between is not None and len(between) <= RESTING and all(map(may_rest, between)):
            found[-1] = range(found[-1].start, each + 1)
        else:
            found.append(range(each, each + 1))
    return found
