"""What is lost at least with the levels that a variant has: each weight at the nearest of its group's."""

from __future__ import annotations

import numpy as np

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled
from edgepack_packager.targets import Form

TILE = 512
"""Groups side by side: the processor compares several at once, and their levels stay in its cache."""


def error(form: Form, expected: Float32, actual: Float32) -> float:
    """Return the squared error if every weight took the nearest level; arguments as in ``values``."""
    return float(np.square(values(form, expected, actual) - expected).sum(dtype=np.float64))


def values(form: Form, expected: Float32, actual: Float32) -> Float32:
    """Return the nearest of the levels that its group has to each weight: float32 [n, columns], as both arguments.

    A group's levels are the values that its weights have: no format is known here.
    """
    left = expected.shape[1] % form.group
    filled = (np.pad(rows, ((0, 0), (0, form.group - left))) if left else rows for rows in (expected, actual))
    ours, theirs = (rows.reshape(-1, form.group) for rows in filled)
    found = np.empty_like(theirs)
    for start in range(0, len(ours), TILE):
        # groups side by side: one column for each
        weights, levels = (np.ascontiguousarray(part[start : start + TILE].T) for part in (ours, theirs))
        nearest = levels.copy()
        _hold_to_all(weights, levels, nearest)
        found[start : start + TILE] = nearest.T
    return found.reshape(len(expected), -1)[:, : expected.shape[1]]


@compiled
def _hold_to_all(weights: Float32, levels: Float32, nearest: Float32) -> None:
    """Replace ``nearest``, the level of each weight, by the nearest of all levels of a column: three arrays [group, n].

    Where it is NaN, it stays: so does the sum of a group that has one among its levels.
    """
    least = np.empty(weights.shape[1], np.float32)
    for i in range(len(weights)):
        ours, found = weights[i], nearest[i]
        for g in range(len(least)):
            least[g] = abs(ours[g] - found[g])
        for k in range(len(levels)):
            theirs = levels[k]
            for g in range(len(least)):
                off = abs(ours[g] - theirs[g])
                found[g] = theirs[g] if off < least[g] else found[g]
                least[g] = off if off < least[g] else least[g]
