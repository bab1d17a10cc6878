"""The loops of ``feedback``, compiled by numba. Importing it takes half a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

LANES = 256
"""Rows side by side: what is meant of them stays in the second cache."""


@compiled
def choose(
    weights: Float32,
    meant: Float32,
    factor: Float32,
    scales: Float32,
    biases: Float32,
    groups: NDArray[np.intp],
    top: np.float32,
    levels: NDArray[np.uint8],
    errors: Float32,
) -> None:
    """Choose the levels of some columns, one after the other, and tell those behind each of its errors.

    Columns of a matrix of n rows, and what is meant of them: float32 [columns, n]; ``factor``: U, float32 [columns,
    columns or more]; ``scales`` and ``biases``: float32 [groups, n]; ``groups``: that of each column. Fills ``levels``
    and ``errors``, [columns, n], and overwrites ``meant``.
    """
    for first in range(0, weights.shape[1], LANES):
        last = min(first + LANES, weights.shape[1])
        for j in range(len(weights)):
            goal, weight = meant[j, first:last], weights[j, first:last]
            scale, bias = scales[groups[j], first:last], biases[groups[j], first:last]
            level, error = levels[j, first:last], errors[j, first:last]
            for r in range(last - first):
                q = _nearest(goal[r], scale[r], bias[r], top)
                level[r] = np.uint8(q)
                error[r] = weight[r] - (q * scale[r] + bias[r])
            for k in range(j + 1, len(weights)):
                by, rest = factor[j, k], meant[k, first:last]
                for r in range(last - first):
                    rest[r] += error[r] * by


@compiled
def keep_near(
    rows: Float32,
    scales: Float32,
    biases: Float32,
    group: int,
    top: np.float32,
    farthest: float,
    levels: NDArray[np.uint8],
) -> None:
    """Give rows [n, columns] their nearest levels again where their error is more than ``farthest`` times as large.

    Scales and biases: float32 [n, groups]. Errors are the root of the sum of squares.
    """
    near = np.empty(rows.shape[1], np.uint8)
    for r in range(len(rows)):
        error, least = 0.0, 0.0
        for c in range(len(near)):
            weight, scale, bias = rows[r, c], scales[r, c // group], biases[r, c // group]
            q = _nearest(weight, scale, bias, top)
            near[c] = np.uint8(q)
            off = np.float64(weight - (q * scale + bias))
            least += off * off
            off = np.float64(weight - (np.float32(levels[r, c]) * scale + bias))
            error += off * off
        if error > farthest * farthest * least:
            levels[r] = near


@inlined
def _nearest(x: np.float32, scale: np.float32, bias: np.float32, top: np.float32) -> np.float32:
    q = np.rint((x - bias) / (scale if scale != 0 else np.float32(1)))
    q = q if q > 0 else np.float32(0)
    return q if q < top else top
