"""The loops of ``repeatable``, compiled by numba. Importing it takes half a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

ROWS, DEPTH = 4, 4
"""What ``multiply`` takes at a time: so many products for each number of a panel and of a result that it fetches."""

_TOGETHER = 128
"""Rows of a result that stay in the second cache while a panel passes."""

_SHIFT = 6755399441055744.0
"""1.5 * 2^52: what is added to it becomes a whole number, ties to even, which then stands in its lowest bits."""

# Their highest digits end with zeros, so that a whole number below 2^20 times them is exact.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_QUARTER_HIGH, _QUARTER_LOW = 1.57079632673412561417e00, 6.07710050650619224932e-11


@compiled
def multiply(x: Float32, panel: Float32, left: int, result: Float32) -> None:
    """Add x [n, depth] times panel [depth, width] to the columns of ``result`` [n, m] from ``left`` on.

    n is a multiple of ``ROWS``, the depth of ``DEPTH``. Every element adds its products one after the other.
    """
    right = min(left + panel.shape[1], result.shape[1])
    for top in range(0, len(x), _TOGETHER):
        for start in range(0, x.shape[1], DEPTH):
            w = panel[start : start + DEPTH]
            for row in range(top, min(top + _TOGETHER, len(x)), ROWS):
                a = x[row : row + ROWS, start : start + DEPTH]
                a00, a01, a02, a03 = a[0, 0], a[0, 1], a[0, 2], a[0, 3]
                a10, a11, a12, a13 = a[1, 0], a[1, 1], a[1, 2], a[1, 3]
                a20, a21, a22, a23 = a[2, 0], a[2, 1], a[2, 2], a[2, 3]
                a30, a31, a32, a33 = a[3, 0], a[3, 1], a[3, 2], a[3, 3]
                y0, y1 = result[row, left:right], result[row + 1, left:right]
                y2, y3 = result[row + 2, left:right], result[row + 3, left:right]
                for c in range(right - left):
                    w0, w1, w2, w3 = w[0, c], w[1, c], w[2, c], w[3, c]
                    y0[c] = y0[c] + a00 * w0 + a01 * w1 + a02 * w2 + a03 * w3
                    y1[c] = y1[c] + a10 * w0 + a11 * w1 + a12 * w2 + a13 * w3
                    y2[c] = y2[c] + a20 * w0 + a21 * w1 + a22 * w2 + a23 * w3
                    y3[c] = y3[c] + a30 * w0 + a31 * w1 + a32 * w2 + a33 * w3


@compiled
def add_up(x: Float32, result: Float32) -> None:
    """Fill ``result`` [n] with the sums of the rows of x [n, columns]."""
    for i in range(len(x)):
        total = np.float64(0)
        for value in x[i]:
            total += np.float64(value)
        result[i] = np.float32(total)


@compiled
def add_squares(x: Float32, result: NDArray[np.float64]) -> None:
    """Add the squares in the columns of x [n, columns] to ``result``."""
    for i in range(len(x)):
        row = x[i]
        for c in range(len(result)):
            value = np.float64(row[c])
            result[c] += value * value


@compiled
def factor(block: NDArray[np.float64], inverse: NDArray[np.float64]) -> None:
    """Replace a symmetric block [n, n], of which the lower triangle is read, by its Cholesky factor L, and fill
    ``inverse`` with that of L. Both are zero above their diagonals."""
    for j in range(len(block)):
        for i in range(j, len(block)):
            total = block[i, j]
            for k in range(j):
                total -= block[i, k] * block[j, k]
            block[i, j] = np.sqrt(total) if i == j else total / block[j, j]
        block[j, j + 1 :] = 0
    for j in range(len(block)):
        inverse[:, j] = 0
        inverse[j, j] = 1 / block[j, j]
        for i in range(j + 1, len(block)):
            total = 0.0
            for k in range(j, i):
                total -= block[i, k] * inverse[k, j]
            inverse[i, j] = total / block[i, i]


@compiled
def exp(x: Float32, result: Float32) -> None:
    """Fill ``result`` with e to the power of each number."""
    for i in range(len(result)):
        result[i] = np.float32(_exp(np.float64(x[i])))


@compiled
def log1p(x: Float32, result: Float32) -> None:
    """Fill ``result`` with the logarithm of 1 + x: 2 (y + y^3/3 + ... + y^31/31), where y = x / (2 + x) <= 1/3."""
    for i in range(len(result)):
        y = np.float64(x[i]) / (2 + np.float64(x[i]))
        square = y * y
        total = 1 / 31.0
        for odd in range(29, 0, -2):
            total = total * square + 1 / np.float64(odd)
        result[i] = np.float32(2 * y * total)


@compiled
def tanh(x: Float32, result: Float32) -> None:
    """Fill ``result`` with the hyperbolic tangent of each number."""
    for i in range(len(result)):
        value = np.float64(x[i])
        value = np.float64(20) if value > 20 else value
        power = _exp(value + value)
        result[i] = np.float32((power - 1) / (power + 1))


@compiled
def sin(x: Float32, quarters: int, result: Float32) -> None:
    """Fill ``result`` with the sine of each angle and so many quarters of a turn."""
    for i in range(len(result)):
        value = np.float64(x[i])
        turns = np.rint(value * (2 / np.pi))
        r = (value - turns * _QUARTER_HIGH) - turns * _QUARTER_LOW
        s = r * r
        if (int(turns) + quarters) % 2:
            # 1 - s/2! + s^2/4! - ...
            y = -1 / 87178291200.0
            for factor in (479001600.0, -3628800.0, 40320.0, -720.0, 24.0, -2.0, 1.0):
                y = y * s + 1 / factor
        else:
            y = 1 / 6227020800.0
            for factor in (-39916800.0, 362880.0, -5040.0, 120.0, -6.0, 1.0):
                y = y * s + 1 / factor
            y *= r
        result[i] = np.float32(-y if (int(turns) + quarters) % 4 >= 2 else y)


@inlined
def _exp(x: float) -> float:
    """e^x for what float32 can tell from 0 and from infinity; beyond, one that it cannot. The Taylor series to r^10."""
    x = 89.0 if x > 89 else x
    x = -104.0 if x < -104 else x
    shifted = x * 1.4426950408889634 + _SHIFT
    whole = shifted - _SHIFT
    r = (x - whole * _LN2_HIGH) - whole * _LN2_LOW
    y = 1 / 3628800.0
    y = y * r + 1 / 362880.0
    y = y * r + 1 / 40320.0
    y = y * r + 1 / 5040.0
    y = y * r + 1 / 720.0
    y = y * r + 1 / 120.0
    y = y * r + 1 / 24.0
    y = y * r + 1 / 6.0
    y = y * r + 0.5
    y = y * r + 1.0
    y = y * r + 1.0
    power = (np.float64(shifted).view(np.int64) + np.int64(1023)) << np.int64(52)
    return y * np.int64(power).view(np.float64)
