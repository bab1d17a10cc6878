"""ggml's K-quants: blocks of 256 weights, whose groups have scales that are multiples of the block's.

Each row is encoded alone, to the bytes of ``quantize_row_q4_K_ref``, ``..._q5_K_ref`` and ``..._q6_K_ref`` in
ggml-quants.c as x86-64 computes them, on every host. ``kernels`` has the searches; importing it takes half a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf.recipe import FORMATS, Kind
from edgepack_packager.targets.sums import add_up

Bytes = NDArray[np.uint8]

BLOCK = 256
STEP = 2048
"""Blocks that are encoded at a time, so that the passes over them stay in the cache."""

_SHIFT = np.float32(12582912)
_FLAT = np.float32(1e-15)


def encode(kind: Kind, rows: Float32, importance: Float32 | None = None) -> Bytes:
    """Return float32 [n, columns] as uint8 [n, row bytes].

    ``importance`` is what an error in each column counts, float32 [columns]; without it the bytes are ggml's. Scales
    that half precision cannot hold become infinities or NaN in it: ``scales`` finds them.
    """
    blocks = np.ascontiguousarray(rows, np.float32).reshape(-1, BLOCK)
    counts = None if importance is None else importance.reshape(-1, BLOCK)
    out = np.empty((len(blocks), FORMATS[kind].block_bytes), np.uint8)
    for start in range(0, len(blocks), STEP):
        part = blocks[start : start + STEP]
        weights = part[:0]
        if counts is not None:
            weights = _weights(kind, part, counts[np.arange(start, start + len(part)) % len(counts)])
        out[start : start + STEP] = _PACKERS[kind](part, weights)
    return out.reshape(len(rows), -1)


def _weights(kind: Kind, blocks: Float32, counts: Float32) -> Float32:
    """Return what the square of each error counts, [n, 256]: large weights more, as in ggml, but in q6_K."""
    if kind == "q6_K":
        return counts
    weights: Float32 = counts * louder(blocks, np.float32(2))
    return weights


def louder(blocks: Float32, share: np.float32) -> Float32:
    """Return the root of each weight's square and of so many times the mean square of its block: [n, size].

    A power of two weights a block. ggml weighs errors so, beside the importance of their columns, in blocks of 256; in
    those of 32 by the mean square of the row.
    """
    squares = np.square(blocks)
    mean = add_up(squares.T.copy())[:, None] * (share / np.float32(blocks.shape[1]))
    root: Float32 = np.sqrt(mean + squares)
    return root


def scales(kind: Kind, encoded: Bytes) -> NDArray[np.float16]:
    """Return the half-precision scales, and minima, of encoded blocks."""
    blocks = encoded.reshape(-1, FORMATS[kind].block_bytes)
    return blocks[:, 208:210].copy().view("<f2") if kind == "q6_K" else blocks[:, :4].copy().view("<f2")


def _q4(blocks: Float32, weights: Float32) -> Bytes:
    head, levels = _affine(blocks, weights, _steps(15, -1, 20))
    pairs = levels.reshape(-1, 4, 2, 32)
    return np.concatenate([head, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)], axis=1)


def _q5(blocks: Float32, weights: Float32) -> Bytes:
    head, levels = _affine(blocks, weights, _steps(31, -0.5, 15))
    pairs = (levels & 15).reshape(-1, 4, 2, 32)
    fifth = np.packbits(levels.reshape(-1, 8, 32) >> 4, axis=1, bitorder="little").reshape(-1, 32)
    return np.concatenate([head, fifth, (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)], axis=1)


def _q6(blocks: Float32, weights: Float32) -> Bytes:
    from edgepack_packager.targets.gguf import kernels

    groups = blocks.reshape(-1, 16)
    others = [-(np.float32(32) + np.float32(0.1) * np.float32(by)) for by in range(-9, 10) if by]
    fits = np.empty((len(groups), 2), np.float32)
    kernels.fit_signed(groups, weights.reshape(-1, 16), np.array([-32, *others], np.float32), fits)
    fitted, inverse = fits[:, 0].reshape(-1, 16), fits[:, 1].copy()
    largest = np.take_along_axis(fitted, np.abs(fitted).argmax(axis=1, keepdims=True), axis=1)
    silent = np.abs(largest) < _FLAT
    with np.errstate(all="ignore"):
        units = np.float32(-128) / largest
        unit = np.where(silent, np.float32(0), np.float32(1) / units).astype("<f2")
        multiples = np.where(silent, 0, np.minimum(127, _nearest(units * fitted))).astype(np.int8)
        own = (unit.astype(np.float32) * multiples).reshape(-1)
    levels = np.empty(groups.shape, np.int8)
    zero = np.zeros_like(inverse)
    kernels.levels(groups, own, zero, inverse, zero, np.array([-32, 31], np.int32), levels)
    codes = (levels + np.int8(32)).view(np.uint8)
    codes[inverse == 0] = 0  # ggml leaves the levels of silent groups at the lowest
    codes = codes.reshape(-1, 2, 4, 32)
    codes[silent[:, 0]] = 0
    low, high = codes & 15, codes >> 4
    low = low[:, :, :2] | low[:, :, 2:] << 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = low.reshape(-1, 128), high.reshape(-1, 64), multiples.view(np.uint8), unit.view(np.uint8)
    return np.concatenate(parts, axis=1)


def _affine(blocks: Float32, weights: Float32, steps: Float32) -> tuple[Bytes, Bytes]:
    """Return the head of each block, its scales and minima, uint8 [n, 16], and the levels: uint8 [n, 256]."""
    from edgepack_packager.targets.gguf import kernels

    groups = blocks.reshape(-1, 32)
    fits = np.empty((len(groups), 4), np.float32)
    kernels.fit_affine(groups, weights.reshape(-1, 32), steps, fits)
    scale, low, inverse, start = (np.ascontiguousarray(column) for column in fits.T)
    unit, multiples, own_scales = _multiples(scale)
    base, steps_down, own_minima = _multiples(-low)
    levels = np.empty(groups.shape, np.int8)
    kernels.levels(groups, own_scales, own_minima, inverse, start, np.array([0, steps[0]], np.int32), levels)
    head = np.concatenate([unit.view(np.uint8), base.view(np.uint8), _six_bits(multiples, steps_down)], axis=1)
    return head, levels.view(np.uint8).reshape(-1, BLOCK)


def _multiples(values: Float32) -> tuple[NDArray[np.float16], Bytes, Float32]:
    """Round the values of eight groups to multiples, to 63, of one half-precision number.

    Returns that number of each block [n, 1], the multiples [n, 8], and the values that they are: float32 [8 n].
    """
    values = values.reshape(-1, 8)
    # Which zero is the greatest of both depends on numpy's instructions for a processor; the sum is ggml's, 0.
    most = np.fmax.reduce(values, axis=1, keepdims=True, initial=0) + np.float32(0)
    with np.errstate(all="ignore"):
        inverse = np.where(most > 0, np.float32(63) / most, np.float32(0))
        multiples = np.minimum(_nearest(inverse * values).astype(np.uint8), np.uint8(63))
        unit = (most / np.float32(63)).astype("<f2")
        return unit, multiples, (unit.astype(np.float32) * multiples).reshape(-1)


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Pack eight scales and eight minima of 6 bits into 12 bytes: the last four of each lie in two pieces."""
    first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, minima)]
    return np.concatenate([*first, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def _steps(top: int, lowest: float, last: int) -> Float32:
    """What a range is divided into: the highest level, then tenths around it, each in float32."""
    tenth = np.float32(0.1)
    tried = [np.float32(lowest) + tenth * np.float32(step) + np.float32(top) for step in range(last + 1)]
    return np.array([top, *tried], np.float32)


def _nearest(x: Float32) -> NDArray[np.int32]:
    """Round to a whole number, ties to even, as ggml's ``nearest_int`` does."""
    return ((x + _SHIFT).view(np.int32) & 0x7FFFFF) - 0x400000


_PACKERS = {"q4_K": _q4, "q5_K": _q5, "q6_K": _q6}
