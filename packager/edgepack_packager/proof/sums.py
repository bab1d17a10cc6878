"""The sums over rows that the tensor gates are made of, in one pass: float64, added in the same order on every host."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled

Float64 = NDArray[np.float64]

LANES = 32
"""Sums side by side, each of every so many columns: the processor adds several at once."""


def of_rows(expected: Float32, actual: Float32) -> tuple[Float64, Float64, Float64]:
    """Return three sums of each row of two arrays [n, columns]: float64 [n].

    Of the squared differences, of the squares of ``expected``, and of the products.
    """
    sums = np.empty((3, len(expected)))
    _add_up(np.ascontiguousarray(expected), np.ascontiguousarray(actual), sums)
    error, power, dot = sums
    return error, power, dot


@compiled
def _add_up(expected: Float32, actual: Float32, sums: Float64) -> None:
    error, power, dot = np.empty(LANES), np.empty(LANES), np.empty(LANES)
    columns = expected.shape[1]
    whole = columns - columns % LANES
    for row in range(len(expected)):
        ours, theirs = expected[row], actual[row]
        error[:], power[:], dot[:] = 0, 0, 0
        for first in range(0, whole, LANES):
            for lane in range(LANES):
                weight, other = np.float64(ours[first + lane]), np.float64(theirs[first + lane])
                off = other - weight
                error[lane] += off * off
                power[lane] += weight * weight
                dot[lane] += weight * other
        for lane in range(columns - whole):
            weight, other = np.float64(ours[whole + lane]), np.float64(theirs[whole + lane])
            off = other - weight
            error[lane] += off * off
            power[lane] += weight * weight
            dot[lane] += weight * other
        sums[0, row], sums[1, row], sums[2, row] = 0, 0, 0
        for lane in range(LANES):
            sums[0, row] += error[lane]
            sums[1, row] += power[lane]
            sums[2, row] += dot[lane]
