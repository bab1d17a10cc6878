"""What gives a block of weights its scale and its codes, compiled by numba. Importing it takes half a second.

``LANES`` blocks go side by side. Every operation is exactly rounded, a fused multiply-add is never used, and a sum is
made by halving, so that the results are the same on every processor.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

LANES = 64
"""Blocks side by side: their halves stay in the nearest cache."""

_SHIFT = np.float32(12582912)
"""1.5 * 2^23: what is added to it becomes a whole number, ties to even, if it is less than 2^22."""


@compiled
def search(
    blocks: Float32,
    importance: Float32,
    factors: Float32,
    lowest: np.float32,
    loud: bool,
    codes: NDArray[np.uint8],
    scales: Float32,
) -> None:
    """Find the factor whose steps q, ``round(factor * x)`` from ``lowest`` to ``-lowest - 1``, lose least of a block.

    x is a weight over the block's largest one, so that no square overflows, and c what the square of its error counts.
    The scale that fits steps best is (c x . q) / (c q . q), and what it leaves of the squared norm is least where
    (c x . q)**2 / (c q . q) is largest. ``blocks``: float32 [n, size], a power of two; ``importance``: c of the blocks
    of a row, float32 [blocks, size]; ``loud``: whether it counts the more the larger a weight is, by its square and the
    block's mean square (ggml takes a root of that). Fills ``codes``, uint8 [n, size], with the steps nearest to
    that scale's less ``lowest``, and ``scales``, float32 [n], not finite where a block is not.
    """
    size, highest = blocks.shape[1], -lowest - np.float32(1)
    x, c = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    along, square = np.empty((2, size // 2, LANES), np.float32)
    extreme, inverse, most, best, scale = np.empty((5, LANES), np.float32)
    for first in range(0, len(blocks), LANES):
        _take(blocks, first, x, extreme)
        for g in range(LANES):
            inverse[g] = np.float32(1) / extreme[g]
            inverse[g] = inverse[g] if np.isfinite(inverse[g]) else np.float32(0)
            for i in range(size):
                c[i, g] = importance[(first + g) % len(importance), i]
        for i in range(size):
            for g in range(LANES):
                x[i, g] *= inverse[g]
        if loud:
            _weigh(x, c, scale)
        most[:], best[:], scale[:] = np.float32(0), np.float32(0), np.float32(0)
        for factor in factors:
            half = size // 2
            for i in range(half):
                for g in range(LANES):
                    one, other = _step(x[i, g], factor, lowest, highest), _step(x[i + half, g], factor, lowest, highest)
                    here, there = c[i, g] * one, c[i + half, g] * other
                    along[i, g] = x[i, g] * here + x[i + half, g] * there
                    square[i, g] = here * one + there * other
            _add_up(along, square)
            for g in range(LANES):
                kept = along[0, g] * along[0, g] / square[0, g]
                better = kept > most[g]
                most[g] = kept if better else most[g]
                best[g] = factor if better else best[g]
                scale[g] = along[0, g] / square[0, g] if better else scale[g]
        for g in range(LANES):
            best[g] = np.float32(1) / scale[g] if scale[g] != 0 else np.float32(0)
        for g in range(min(LANES, len(blocks) - first)):
            scales[first + g] = scale[g] * extreme[g] if np.isfinite(extreme[g]) else extreme[g]
            for i in range(size):
                codes[first + g, i] = np.uint8(_step(x[i, g], best[g], lowest, highest) - lowest)


@inlined
def _add_up(along: Float32, square: Float32) -> None:
    """Add up the rows of both by halves: the first has the sums of all, and the others mean nothing."""
    half = len(along)
    while half > 1:
        half //= 2
        for i in range(half):
            for g in range(LANES):
                along[i, g] += along[i + half, g]
                square[i, g] += square[i + half, g]


@inlined
def _weigh(x: Float32, c: Float32, mean: Float32) -> None:
    """Multiply c by each weight's square and the mean square of its lane, for which ``mean`` is used."""
    mean[:] = np.float32(0)
    for i in range(len(x)):
        for g in range(LANES):
            mean[g] += x[i, g] * x[i, g]
    for g in range(LANES):
        mean[g] /= np.float32(len(x))
    for i in range(len(x)):
        for g in range(LANES):
            c[i, g] *= mean[g] + x[i, g] * x[i, g]


@compiled
def plain(blocks: Float32, half: np.float32, codes: NDArray[np.uint8], scales: Float32) -> None:
    """Let the largest of a block have code 0: its scale is that weight over ``-half``, in float32 as its inverse.

    Arguments as in ``search``. A block of zeros, or of numbers so small that the inverse overflows, has the code of
    zero throughout.
    """
    x = np.empty((blocks.shape[1], LANES), np.float32)
    extreme, inverse = np.empty((2, LANES), np.float32)
    for first in range(0, len(blocks), LANES):
        _take(blocks, first, x, extreme)
        for g in range(LANES):
            extreme[g] /= -half
            inverse[g] = np.float32(1) / extreme[g]
            inverse[g] = inverse[g] if np.isfinite(inverse[g]) else np.float32(0)
        for i in range(len(x)):
            for g in range(LANES):
                # Never below 0, so that truncation is floor; what lies opposite the largest may exceed the last code.
                step = x[i, g] * inverse[g] + (half + np.float32(0.5))
                x[i, g] = step if step < half + half - np.float32(1) else half + half - np.float32(1)
        for g in range(min(LANES, len(blocks) - first)):
            scales[first + g] = extreme[g]
            for i in range(len(x)):
                codes[first + g, i] = np.uint8(x[i, g])


@inlined
def _step(x: np.float32, factor: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    step = (x * factor + _SHIFT) - _SHIFT
    step = step if step < highest else highest
    return step if step > lowest else lowest


@inlined
def _lay_out(blocks: Float32, first: int, x: Float32) -> None:
    """Take blocks from the first on, a lane each; the last one fills what is left."""
    for g in range(LANES):
        row = min(first + g, len(blocks) - 1)
        for i in range(len(x)):
            x[i, g] = blocks[row, i]


@inlined
def _take(blocks: Float32, first: int, x: Float32, extreme: Float32) -> None:
    """Lay blocks out, with the largest of their weights.

    Where both signs reach the magnitude, that is the negative one, and of zeros the first. It is NaN where any is not
    finite.
    """
    high, low, odd = np.empty((3, LANES), np.float32)
    _lay_out(blocks, first, x)
    high[:], low[:], odd[:] = x[0], x[0], np.float32(0)
    for i in range(len(x)):
        for g in range(LANES):
            v = x[i, g]
            high[g] = v if v > high[g] else high[g]
            low[g] = v if v < low[g] else low[g]
            odd[g] += v - v
    for g in range(LANES):
        extreme[g] = odd[g] if odd[g] != 0 else high[g] if high[g] > -low[g] else low[g]


@compiled
def search_asymmetric(
    blocks: Float32,
    importance: Float32,
    spreads: Float32,
    top: np.float32,
    loud: bool,
    codes: NDArray[np.uint8],
    scales: Float32,
    zeros: NDArray[np.uint8],
) -> None:
    """Find the codes from 0 to ``top``, and which of them stands for 0, that lose least of a block.

    Tried are so many steps over each of ``spreads`` of the range between a block's ends, which has 0 in it, around the
    middle of that. The scale that fits the steps best and what it leaves are as in ``search``, and so are the other
    arguments. Fills ``zeros``, uint8 [n], as well.
    """
    size = blocks.shape[1]
    x, c = np.empty((size, LANES), np.float32), np.empty((size, LANES), np.float32)
    along, square = np.empty((2, size // 2, LANES), np.float32)
    low, width, lowest, most, best, scale, zero = np.empty((7, LANES), np.float32)
    for first in range(0, len(blocks), LANES):
        _take_range(blocks, first, x, low, width)
        for g in range(LANES):
            inverse = np.float32(1) / width[g]
            inverse = inverse if np.isfinite(inverse) else np.float32(0)
            low[g] *= inverse
            for i in range(size):
                x[i, g] *= inverse
                c[i, g] = importance[(first + g) % len(importance), i]
        if loud:
            _weigh(x, c, scale)
        most[:], best[:], scale[:], zero[:] = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for spread in spreads:
            factor, inward = top / spread, (np.float32(1) - spread) * np.float32(0.5)
            for g in range(LANES):
                lowest[g] = _step(low[g] + inward, factor, -top, np.float32(0))
            half = size // 2
            for i in range(half):
                for g in range(LANES):
                    one = _step(x[i, g], factor, lowest[g], lowest[g] + top)
                    other = _step(x[i + half, g], factor, lowest[g], lowest[g] + top)
                    here, there = c[i, g] * one, c[i + half, g] * other
                    along[i, g] = x[i, g] * here + x[i + half, g] * there
                    square[i, g] = here * one + there * other
            _add_up(along, square)
            for g in range(LANES):
                kept = along[0, g] * along[0, g] / square[0, g]
                better = kept > most[g]
                most[g] = kept if better else most[g]
                scale[g] = along[0, g] / square[0, g] if better else scale[g]
                zero[g] = lowest[g] if better else zero[g]
        for g in range(LANES):
            best[g] = np.float32(1) / scale[g] if scale[g] != 0 else np.float32(0)
        for g in range(min(LANES, len(blocks) - first)):
            scales[first + g] = scale[g] * width[g]
            zeros[first + g] = np.uint8(-zero[g])
            for i in range(size):
                codes[first + g, i] = np.uint8(_step(x[i, g], best[g], zero[g], zero[g] + top) - zero[g])


@compiled
def plain_asymmetric(
    blocks: Float32, top: np.float32, codes: NDArray[np.uint8], scales: Float32, zeros: NDArray[np.uint8]
) -> None:
    """Lay the codes from 0 to ``top`` over the range between a block's ends, which has 0 in it.

    Halves are rounded up. Arguments as in ``search_asymmetric``. A block of zeros, or of numbers so small that the
    inverse of its scale overflows, has the zero point throughout.
    """
    x = np.empty((blocks.shape[1], LANES), np.float32)
    low, scale = np.empty((2, LANES), np.float32)
    for first in range(0, len(blocks), LANES):
        _take_range(blocks, first, x, low, scale)
        for g in range(LANES):
            scale[g] /= top
            zero = np.floor(-low[g] / scale[g] + np.float32(0.5)) if scale[g] > 0 else np.float32(0)
            low[g] = zero if zero < top else top
            inverse = np.float32(1) / scale[g]
            inverse = inverse if np.isfinite(inverse) else np.float32(0)
            for i in range(len(x)):
                step = x[i, g] * inverse + low[g] + np.float32(0.5)
                step = step if step > 0 else np.float32(0)
                x[i, g] = step if step < top else top
        for g in range(min(LANES, len(blocks) - first)):
            scales[first + g], zeros[first + g] = scale[g], np.uint8(low[g])
            for i in range(len(x)):
                codes[first + g, i] = np.uint8(x[i, g])


@inlined
def _take_range(blocks: Float32, first: int, x: Float32, low: Float32, width: Float32) -> None:
    """Lay blocks out, with the lowest of their weights, 0 at most, and how far it is from there to the highest, 0 at
    least. A width is NaN where any is not finite."""
    odd = np.zeros(LANES, np.float32)
    low[:], width[:] = np.float32(0), np.float32(0)
    _lay_out(blocks, first, x)
    for i in range(len(x)):
        for g in range(LANES):
            v = x[i, g]
            low[g] = v if v < low[g] else low[g]
            width[g] = v if v > width[g] else width[g]
            odd[g] += v - v
    for g in range(LANES):
        width[g] = odd[g] if odd[g] != 0 else width[g] - low[g]
