"""ggml's K-quants: blocks of 256 weights, whose groups have scales that are multiples of the block's.

Each row is encoded alone, to the bytes of ``quantize_row_q2_K_ref`` to ``..._q6_K_ref`` in ggml-quants.c as x86-64
computes them, on every host. With an importance q2_K and q3_K are those of ``quantize_row_q2_K_impl`` and
``..._q3_K_impl``. ``kernels`` has the searches; importing it takes half a second.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf.recipe import FORMATS, Kind

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
    parts = [
        _PACKERS[kind](part, part[:0] if counts is None else _weights(kind, part, counts))
        for part, counts in in_steps(blocks, importance, STEP)
    ]
    return np.concatenate(parts).reshape(len(rows), -1)


def in_steps(blocks: Float32, importance: Float32 | None, step: int) -> Iterator[tuple[Float32, Float32 | None]]:
    """Yield so many blocks of rows at a time, float32 [n, size], with what their columns count, float32 [n, size].

    ``importance``, float32 [columns], is that of a row, whose blocks follow one another; None for none.
    """
    counts = None if importance is None else importance.reshape(-1, blocks.shape[1])
    for start in range(0, len(blocks), step):
        part = blocks[start : start + step]
        yield part, None if counts is None else counts[np.arange(start, start + len(part)) % len(counts)]


def _weights(kind: Kind, blocks: Float32, counts: Float32) -> Float32:
    """Return what the square of each error counts, [n, 256]: large weights more, as in ggml, but in q6_K."""
    if kind == "q6_K":
        return counts
    weights: Float32 = counts * louder(blocks, np.float32(1 if kind == "q2_K" else 2))
    return weights


def louder(blocks: Float32, share: np.float32) -> Float32:
    """Return the root of each weight's square and of so many times the mean square of its block: [n, size].

    A power of two weights a block. ggml weighs errors so, beside the importance of their columns, in blocks of 256; in
    those of 32 by the mean square of the row.
    """
    from edgepack_packager.targets.gguf import kernels

    sums = np.empty(len(blocks), np.float32)
    kernels.squares(blocks, sums)
    mean = sums[:, None] * (share / np.float32(blocks.shape[1]))
    root: Float32 = np.sqrt(mean + np.square(blocks))
    return root


def scales(kind: Kind, encoded: Bytes) -> NDArray[np.float16]:
    """Return the half-precision scales, and minima, of encoded blocks."""
    blocks = encoded.reshape(-1, FORMATS[kind].block_bytes)
    return np.ascontiguousarray(blocks[:, _HALVES[kind]]).view("<f2")


def _q2(blocks: Float32, weights: Float32) -> Bytes:
    from edgepack_packager.targets.gguf import kernels

    groups = blocks.reshape(-1, 16)
    fits = np.empty((len(groups), 4), np.float32)
    if len(weights):
        kernels.fit_affine(groups, weights.reshape(-1, 16), _steps(3, -0.9, 36, 0.05), fits)
    else:
        kernels.fit_affine(groups, np.abs(groups), _steps(3, -0.5, 15), fits, False)
    scale, low, inverse, start = (np.ascontiguousarray(column) for column in fits.T)
    if len(weights):
        counts = _in_turn(weights.reshape(-1, 16)).reshape(-1, 16)
        (unit, multiples, own_scales), (base, down, own_minima) = (_fitted(x, counts) for x in (scale, -low))
    else:
        (unit, multiples, own_scales), (base, down, own_minima) = (_multiples(x, 15, 16) for x in (scale, -low))
    levels = np.empty(groups.shape, np.int8)
    kernels.levels(groups, own_scales, own_minima, inverse, start, np.array([0, 3], np.int32), levels)
    return np.concatenate([multiples | down << 4, _twos(levels), unit.view(np.uint8), base.view(np.uint8)], axis=1)


def _fitted(values: Float32, counts: Float32) -> tuple[NDArray[np.float16], Bytes, Float32]:
    """As ``_multiples``, to 15 and for sixteen groups, with the number that loses least: what errors count, [n, 16]."""
    from edgepack_packager.targets.gguf import kernels

    rows = values.reshape(-1, 16)
    units, multiples = np.empty(len(rows), np.float32), np.empty(rows.shape, np.uint8)
    kernels.fit_multiples(rows, counts, 15, units, multiples)
    with np.errstate(all="ignore"):
        unit = units[:, None].astype("<f2")
        return unit, multiples, (unit.astype(np.float32) * multiples).reshape(-1)


def _q3(blocks: Float32, weights: Float32) -> Bytes:
    from edgepack_packager.targets.gguf import kernels

    groups, ends = blocks.reshape(-1, 16), np.array([-4, 3], np.int32)
    found = np.empty(groups.shape, np.int8)
    if len(weights):
        fitted, found = _signed(groups, weights.reshape(-1, 16), 4)
        units, multiples = _signed(fitted.reshape(-1, 16), _in_turn(weights.reshape(-1, 16)).reshape(-1, 16), 32)
        unit = units[:, None]
    else:
        fitted = np.empty(len(groups), np.float32)
        kernels.refine_signed(groups, -4, fitted, found)
        rows = fitted.reshape(-1, 16)
        largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
        with np.errstate(all="ignore"):
            inverse = np.float32(-32) / largest
            multiples = np.clip(nearest(inverse * rows), -32, 31).astype(np.int8)
            unit = np.where(largest == 0, np.float32(0), np.float32(1) / inverse)
        multiples[largest[:, 0] == 0] = -32
    with np.errstate(all="ignore"):
        half = unit.astype("<f2")
        own = (half.astype(np.float32) * multiples).reshape(-1)
    levels, zero = np.empty(groups.shape, np.int8), np.zeros_like(own)
    kernels.levels(groups, own, zero, zero, zero, ends, levels)
    codes = np.where(own[:, None] == 0, found, levels) + np.int8(4)
    high = np.packbits(codes.reshape(-1, 8, 32) >> 2, axis=1, bitorder="little").reshape(-1, 32)
    sixes = (multiples + np.int8(32)).view(np.uint8)
    top = sixes.reshape(-1, 4, 4) >> 4
    parts = [sixes[:, :8] & 15 | sixes[:, 8:] << 4]
    parts.append(top[:, 0] | top[:, 1] << 2 | top[:, 2] << 4 | top[:, 3] << 6)
    return np.concatenate([high, _twos(codes & 3), *parts, half.view(np.uint8)], axis=1)


def _signed(groups: Float32, weights: Float32, half: int) -> tuple[Float32, NDArray[np.int8]]:
    """Return the scale of each group [n, 16], and its levels from -half to half - 1: the lowest in a silent one."""
    from edgepack_packager.targets.gguf import kernels

    fits = np.empty((len(groups), 2), np.float32)
    kernels.fit_signed(groups, weights, _around(half), fits)
    scales, inverse = (np.ascontiguousarray(column) for column in fits.T)
    levels, zero = np.empty(groups.shape, np.int8), np.zeros_like(inverse)
    kernels.levels(groups, zero, zero, inverse, zero, np.array([-half, half - 1], np.int32), levels)
    levels[inverse == 0] = -half
    return scales, levels


def _around(half: int) -> Float32:
    """What the weight of largest magnitude becomes: the lowest level, and nine tenths of a step on either side."""
    return np.array([-half, *(-(half + np.float32(0.1) * np.float32(by)) for by in range(-9, 10) if by)], np.float32)


def _in_turn(groups: Float32) -> Float32:
    """Return the sums of groups [n, 16], each added up one weight after another."""
    total: Float32 = sum(groups.T[1:], start=groups.T[0])
    return total


def _twos(levels: NDArray[np.int8]) -> Bytes:
    """Pack levels of two bits, four that are 32 apart into a byte: [n, 64] of [16 n, 16]."""
    four = levels.view(np.uint8).reshape(-1, 2, 4, 32)
    packed: Bytes = np.bitwise_or.reduce(four << np.arange(0, 8, 2, dtype=np.uint8)[:, None], axis=2)
    return packed.reshape(-1, 64)


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
    fits = np.empty((len(groups), 2), np.float32)
    kernels.fit_signed(groups, weights.reshape(-1, 16), _around(32), fits)
    fitted, inverse = fits[:, 0].reshape(-1, 16), fits[:, 1].copy()
    largest = np.take_along_axis(fitted, np.abs(fitted).argmax(axis=1, keepdims=True), axis=1)
    silent = np.abs(largest) < _FLAT
    with np.errstate(all="ignore"):
        units = np.float32(-128) / largest
        unit = np.where(silent, np.float32(0), np.float32(1) / units).astype("<f2")
        multiples = np.where(silent, 0, np.minimum(127, nearest(units * fitted))).astype(np.int8)
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
    unit, multiples, own_scales = _multiples(scale, 63, 8)
    base, steps_down, own_minima = _multiples(-low, 63, 8)
    levels = np.empty(groups.shape, np.int8)
    kernels.levels(groups, own_scales, own_minima, inverse, start, np.array([0, steps[0]], np.int32), levels)
    head = np.concatenate([unit.view(np.uint8), base.view(np.uint8), _six_bits(multiples, steps_down)], axis=1)
    return head, levels.view(np.uint8).reshape(-1, BLOCK)


def _multiples(values: Float32, top: int, size: int) -> tuple[NDArray[np.float16], Bytes, Float32]:
    """Round the values of so many groups to multiples, to ``top``, of one half-precision number.

    Returns that number of each block [n, 1], the multiples [n, size], and the values that they are: float32 [size n].
    """
    values = values.reshape(-1, size)
    # Which zero is the greatest of both depends on numpy's instructions for a processor; the sum is ggml's, 0.
    most = np.fmax.reduce(values, axis=1, keepdims=True, initial=0) + np.float32(0)
    with np.errstate(all="ignore"):
        inverse = np.where(most > 0, np.float32(top) / most, np.float32(0))
        multiples = np.minimum(nearest(inverse * values).astype(np.uint8), np.uint8(top))
        unit = (most / np.float32(top)).astype("<f2")
        return unit, multiples, (unit.astype(np.float32) * multiples).reshape(-1)


def _six_bits(scales: Bytes, minima: Bytes) -> Bytes:
    """Pack eight scales and eight minima of 6 bits into 12 bytes: the last four of each lie in two pieces."""
    first = [part[:, :4] | part[:, 4:] >> 4 << 6 for part in (scales, minima)]
    return np.concatenate([*first, scales[:, 4:] & 15 | (minima[:, 4:] & 15) << 4], axis=1)


def _steps(top: int, lowest: float, last: int, by: float = 0.1) -> Float32:
    """What a range is divided into: the highest level, then parts of a step around it, each in float32."""
    part = np.float32(by)
    tried = [np.float32(lowest) + part * np.float32(step) + np.float32(top) for step in range(last + 1)]
    return np.array([top, *tried], np.float32)


def nearest(x: Float32) -> NDArray[np.int32]:
    """Round to a whole number, ties to even, as ggml's ``nearest_int`` does."""
    return ((x + _SHIFT).view(np.int32) & 0x7FFFFF) - 0x400000


_PACKERS = {"q2_K": _q2, "q3_K": _q3, "q4_K": _q4, "q5_K": _q5, "q6_K": _q6}
_HALVES = {
    "q2_K": slice(80, 84),
    "q3_K": slice(108, 110),
    "q4_K": slice(0, 4),
    "q5_K": slice(0, 4),
    "q6_K": slice(208, 210),
}
"""Where a block has its scales of half precision."""
