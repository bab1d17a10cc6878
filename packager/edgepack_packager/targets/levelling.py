"""The loop of ``feedback``, compiled by numba. Importing it takes half a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled

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
                step = scale[r] if scale[r] != 0 else np.float32(1)
                q = np.rint((goal[r] - bias[r]) / step)
                q = q if q > 0 else np.float32(0)
                q = q if q < top else top
                level[r] = np.uint8(q)
                error[r] = weight[r] - (q * scale[r] + bias[r])
            for k in range(j + 1, len(weights)):
                by, rest = factor[j, k], meant[k, first:last]
                for r in range(last - first):
                    rest[r] += error[r] * by
