"""Which sequences an engine computes together that takes only those in a row."""

from __future__ import annotations

import pytest

from edgepack_runtimes.spans import RESTING, spans


@pytest.mark.parametrize(
    ("wanted", "full", "found"),
    [
        ([], [], []),
        ([3], [], [(3, 4)]),
        ([2, 0, 1], [], [(0, 3)]),
        ([0, 2, 3, 6], [], [(0, 7)]),
        ([0, RESTING + 1, 2 * RESTING + 3], [], [(0, RESTING + 2), (2 * RESTING + 3, 2 * RESTING + 4)]),
        ([0, 2, 4], [1], [(0, 1), (2, 5)]),
        ([1, 7], [], [(1, 2), (7, 8)]),
    ],
)
def test_those_between_rest_where_they_can(wanted: list[int], full: list[int], found: list[tuple[int, int]]) -> None:
    assert [(each.start, each.stop) for each in spans(wanted, lambda row: row not in full)] == found
