"""The loops of mlx's quantiser and of a search for its scales and biases, compiled by numba. Importing it takes half a
second.

In a search ``LANES`` groups go side by side: arrays of weights are float32 [tiles, weights of a group, ``LANES``],
those of groups float32 [tiles, ``LANES``]. Every operation is exactly rounded, a fused multiply-add is never used, and
a sum is made by halving, so that the results are the same on every processor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

LANES = 64

_SHIFT = np.float32(12582912)
"""1.5 * 2^23: what is added to it becomes a whole number, ties to even, if it is less than 2^22."""

_BESIDE_SIGN = np.int32(0x7FFFFFFF)


@compiled
def ends(groups: NDArray[np.int32], low: NDArray[np.int32], high: NDArray[np.int32]) -> None:
    """Find the lowest and the highest weight of each group: the bits of float32, [n, group] and [n] each.

    Whole numbers are compared several at once: those of bits are in the order of their floats, if what stands beside a
    sign is turned round. A NaN is beyond all others, on either side.
    """
    for row in range(len(groups)):
        x = groups[row]
        least, most = _BESIDE_SIGN, ~_BESIDE_SIGN
        for i in range(len(x)):
            ordered = _turned(x[i])
            least, most = min(least, ordered), max(most, ordered)
        low[row], high[row] = _turned(least), _turned(most)


@compiled
def between(scale: Float32, bias: Float32, top: np.float32, smallest: np.float32) -> None:
    """Make of the lowest and the highest weights of groups, float32 [n], their scales and biases, by mlx's rule."""
    for g in range(len(scale)):
        low, high = scale[g], bias[g]
        below = abs(low) > abs(high)
        width = (high - low) / top
        width = smallest if width < smallest else width
        step, edge = (width, low) if below else (-width, high)
        steps = np.rint(edge / step)
        scale[g], bias[g] = (edge / steps, edge) if steps != 0 else (step, np.float32(0))


@compiled
def nearest(groups: Float32, scale: Float32, bias: Float32, top: np.float32, levels: NDArray[np.uint8]) -> None:
    """Fill ``levels``, uint8 [n, group], with those next to the weights, float32 [n, group], from 0 to ``top``."""
    for row in range(len(groups)):
        x, out, s, b = groups[row], levels[row], scale[row], bias[row]
        for i in range(len(x)):
            out[i] = np.int32(_level(x[i], s, b, top))


@compiled
def take(groups: Float32, counts: Float32, x: Float32, c: Float32, middle: Float32, width: Float32) -> None:
    """Take groups, float32 [n, group], a lane each, as fractions of their range from its middle; the last one fills up.

    ``counts``: float32 [n, group], to c. Fills the middles and the widths.
    """
    for tile in range(len(x)):
        for g in range(LANES):
            row = min(tile * LANES + g, len(groups) - 1)
            low, high = groups[row, 0], groups[row, 0]
            for i in range(groups.shape[1]):
                low, high = min(low, groups[row, i]), max(high, groups[row, i])
                x[tile, i, g] = groups[row, i]
                c[tile, i, g] = counts[row, i]
            middle[tile, g] = low * np.float32(0.5) + high * np.float32(0.5)
            width[tile, g] = high - low
        for i in range(groups.shape[1]):
            for g in range(LANES):
                x[tile, i, g] = (x[tile, i, g] - middle[tile, g]) * (np.float32(1) / width[tile, g])


@compiled
def fit(
    x: Float32, c: Float32, scale: np.float32, bias: np.float32, top: np.float32, slope: Float32, low: Float32
) -> None:
    """Find the line that fits the levels best to the weights, which a scale and a bias for all give: slope q + low."""
    half = x.shape[1] // 2
    n, wx = np.empty((half, LANES), np.float32), np.empty((half, LANES), np.float32)
    q, qq, qx = (
        np.empty((half, LANES), np.float32),
        np.empty((half, LANES), np.float32),
        np.empty((half, LANES), np.float32),
    )
    for tile in range(len(x)):
        for i in range(half):
            for g in range(LANES):
                a, b, ca, cb = x[tile, i, g], x[tile, i + half, g], c[tile, i, g], c[tile, i + half, g]
                la, lb = _level(a, scale, bias, top), _level(b, scale, bias, top)
                wa, wb = ca * la, cb * lb
                n[i, g], wx[i, g] = ca + cb, ca * a + cb * b
                q[i, g], qq[i, g], qx[i, g] = wa + wb, wa * la + wb * lb, wa * a + wb * b
        _add_up(n)
        _add_up(wx)
        _add_up(q)
        _add_up(qq)
        _add_up(qx)
        for g in range(LANES):
            found = (n[0, g] * qx[0, g] - q[0, g] * wx[0, g]) / (n[0, g] * qq[0, g] - q[0, g] * q[0, g])
            slope[tile, g], low[tile, g] = found, (wx[0, g] - found * q[0, g]) / n[0, g]


@compiled
def errors(x: Float32, c: Float32, scale: Float32, bias: Float32, top: np.float32, error: Float32) -> None:
    """Sum what the nearest levels of each group's scale and bias lose: the squares, each times its count."""
    half = x.shape[1] // 2
    lost = np.empty((half, LANES), np.float32)
    for tile in range(len(x)):
        for i in range(half):
            for g in range(LANES):
                s, b = scale[tile, g], bias[tile, g]
                one = _level(x[tile, i, g], s, b, top) * s + b - x[tile, i, g]
                other = _level(x[tile, i + half, g], s, b, top) * s + b - x[tile, i + half, g]
                lost[i, g] = one * one * c[tile, i, g] + other * other * c[tile, i + half, g]
        _add_up(lost)
        error[tile] = lost[0]


@inlined
def _turned(bits: np.int32) -> np.int32:
    return bits ^ (bits >> 31 & _BESIDE_SIGN)


@inlined
def _level(x: np.float32, scale: np.float32, bias: np.float32, top: np.float32) -> np.float32:
    step = (x - bias) / scale
    step = step if step < top else top
    step = step if step > np.float32(0) else np.float32(0)
    return (step + _SHIFT) - _SHIFT


@inlined
def _add_up(rows: Float32) -> None:
    """Add rows up, a power of two of them, to the first."""
    half = len(rows)
    while half > 1:
        half //= 2
        for i in range(half):
            for g in range(LANES):
                rows[i, g] += rows[i + half, g]
