"""What is lost at least with the levels that a variant has: each weight at the nearest of its group's."""

from __future__ import annotations

import numpy as np

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled
from edgepack_packager.targets import Form

TILE = 512
"""Groups side by side: the processor compares several at once, and their levels stay in its cache."""


def error(form: Form, expected: Float32, actual: Float32) -> float:
    """Return the squared error if every weight took the nearest of the levels that its group has.

    Both are [n, columns]. A group's levels are the values that its weights have: no format is known here.
    """
    left = expected.shape[1] % form.group
    filled = (np.pad(rows, ((0, 0), (0, form.group - left))) if left else rows for rows in (expected, actual))
    ours, theirs = (rows.reshape(-1, form.group) for rows in filled)
    total = 0.0
    for start in range(0, len(ours), TILE):
        # groups side by side: one column for each
        weights, levels = (np.ascontiguousarray(part[start : start + TILE].T) for part in (ours, theirs))
        nearest = np.square(weights - levels)
        _hold_to_all(weights, levels, nearest)
        total += float(nearest.sum(dtype=np.float64))
    return total


@compiled
def _hold_to_all(weights: Float32, levels: Float32, nearest: Float32) -> None:
    """Make ``nearest``, the squared errors, the smallest of all levels of a column: three arrays [group, n].

    Where it is NaN, it stays: so does the sum of a group that has one among its levels.
    """
    for i in range(len(weights)):
        ours, least = weights[i], nearest[i]
        for k in range(len(levels)):
            theirs = levels[k]
            for g in range(len(least)):
                off = ours[g] - theirs[g]
                squared = off * off
                least[g] = squared if squared < least[g] else least[g]
