"""The searches of the rules in ``costs``, compiled by numba: of some steps for a group, the fit that loses least.

A group is a column of ``groups``, float32 [weights of a group, n]; ``LANES`` of them go side by side, and every sum is
made in the order of the weights. ``parts`` is what a group's range, or its peak, is divided into, float32.
"""

from __future__ import annotations

import numpy as np

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

LANES = 64
"""Groups side by side: what is computed of them stays in the nearest cache."""

_ZERO = np.float32(0)
_SHIFT = np.float32(12582912)
"""1.5 * 2^23: what is added to it becomes a whole number, ties to even, if it is less than 2^22."""


@compiled
def affine(groups: Float32, parts: Float32, highest: np.float32, scales: Float32, offsets: Float32) -> None:
    """Fit groups by levels from 0 to ``highest`` times a scale, and an offset of at most zero: least squares.

    A part of the range from the lowest weight, or zero, to the highest is a step, whose levels are fitted. Fills
    ``scales`` and ``offsets``, float32 [n].
    """
    size, n = groups.shape
    x, levels = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    low, wide, mean, step, scale, offset, error = np.empty((7, LANES), np.float32)
    mean_l, spread, along, squares, products = np.empty((5, LANES), np.float32)
    least, best, lowest = np.empty((3, LANES), np.float32)
    for first in range(0, n, LANES):
        _take(groups, first, x)
        low[:], wide[:], mean[:] = _ZERO, _ZERO, _ZERO
        for i in range(size):
            for g in range(LANES):
                v = x[i, g]
                low[g] = v if v < low[g] else low[g]
                wide[g] = v if v > wide[g] else wide[g]
                mean[g] += v
        for g in range(LANES):
            wide[g] -= low[g]
            mean[g] /= np.float32(size)
        for k in range(len(parts)):
            for g in range(LANES):
                step[g] = wide[g] / parts[k]
            mean_l[:], squares[:], products[:] = _ZERO, _ZERO, _ZERO
            for i in range(size):
                for g in range(LANES):
                    level = _level((x[i, g] - low[g]) / step[g], _ZERO, highest)
                    levels[i, g] = level
                    mean_l[g] += level
                    squares[g] += level * level
                    products[g] += level * x[i, g]
            for g in range(LANES):
                mean_l[g] /= np.float32(size)
            spread[:], along[:], error[:] = _ZERO, _ZERO, _ZERO
            for i in range(size):
                for g in range(LANES):
                    off = levels[i, g] - mean_l[g]
                    along[g] += off * (x[i, g] - mean[g])
                    spread[g] += off * off
            for g in range(LANES):
                slope = _over(along[g], spread[g])
                start = mean[g] - slope * mean_l[g]
                scale[g] = _over(products[g], squares[g]) if start > _ZERO else slope
                offset[g] = start if start < _ZERO else _ZERO
            for i in range(size):
                for g in range(LANES):
                    off = scale[g] * levels[i, g] + offset[g] - x[i, g]
                    error[g] += off * off
            for g in range(LANES):
                better = k == 0 or error[g] < least[g]
                least[g] = error[g] if better else least[g]
                best[g] = scale[g] if better else best[g]
                lowest[g] = offset[g] if better else lowest[g]
        for g in range(min(LANES, n - first)):
            scales[first + g], offsets[first + g] = best[g], lowest[g]


@compiled
def signed(groups: Float32, parts: Float32, lowest: np.float32, highest: np.float32, scales: Float32) -> None:
    """Fit groups by levels from ``lowest`` to ``highest`` times a scale: least squares, each times the weight's square.

    A part of the weight of largest magnitude, the positive one only where it is larger, is a step, whose levels are
    fitted. Fills ``scales``, float32 [n].
    """
    size, n = groups.shape
    x, levels = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    low, high, step, scale, along, squares, error, least, best = np.empty((9, LANES), np.float32)
    for first in range(0, n, LANES):
        _take(groups, first, x)
        low[:], high[:] = x[0], x[0]
        for i in range(size):
            for g in range(LANES):
                v = x[i, g]
                low[g] = v if v < low[g] else low[g]
                high[g] = v if v > high[g] else high[g]
        for k in range(len(parts)):
            for g in range(LANES):
                step[g] = (high[g] if high[g] > -low[g] else low[g]) / parts[k]
            along[:], squares[:], error[:] = _ZERO, _ZERO, _ZERO
            for i in range(size):
                for g in range(LANES):
                    v = x[i, g]
                    level = _level(v / step[g], lowest, highest)
                    levels[i, g] = level
                    along[g] += v * v * v * level
                    squares[g] += v * v * level * level
            for g in range(LANES):
                scale[g] = _over(along[g], squares[g])
            for i in range(size):
                for g in range(LANES):
                    v = x[i, g]
                    off = scale[g] * levels[i, g] - v
                    error[g] += v * v * (off * off)
            for g in range(LANES):
                better = k == 0 or error[g] < least[g]
                least[g] = error[g] if better else least[g]
                best[g] = scale[g] if better else best[g]
        for g in range(min(LANES, n - first)):
            scales[first + g] = best[g]


@inlined
def _take(groups: Float32, first: int, x: Float32) -> None:
    """Take groups from the first on, a lane each; the last one fills the lanes that are left."""
    count = min(LANES, groups.shape[1] - first)
    for i in range(len(x)):
        for g in range(count):
            x[i, g] = groups[i, first + g]
        for g in range(count, LANES):
            x[i, g] = x[i, count - 1]


@inlined
def _level(quotient: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    """The nearest level, and that of zero where the step was zero."""
    level = quotient if quotient < highest else highest
    level = level if level > lowest else lowest
    level = (level + _SHIFT) - _SHIFT
    return level if np.isfinite(quotient) else _ZERO


@inlined
def _over(x: np.float32, y: np.float32) -> np.float32:
    """x / y, and 0 where that is no number."""
    quotient = x / y
    return quotient if np.isfinite(quotient) else _ZERO
