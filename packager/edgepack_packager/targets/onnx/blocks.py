"""Symmetric block quantisation as MatMulNBits and GatherBlockQuantized read it, in numpy, the same on every host.

A block of columns has one float32 scale; value = (code - 2**(bits - 1)) * scale. Two 4-bit codes share a byte, the
first in the low half. A plain scale is the block's signed largest element over -2**(bits - 1), so that this element is
represented exactly by code 0; those bytes are onnxruntime's own quantiser's. A searched scale is the best of some.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.onnx.layout import Blocks
from edgepack_packager.targets.sums import add_up

# Blocks that are quantised at once: intermediate arrays stay at a megabyte, whatever the size of the source's rows.
_RUN = 8192

# Where a searched scale may put a block's largest element, in steps from the middle of the codes' range of 2 h: one
# step beyond the plain -h, which clips it, to one and a half short of it, which leaves a code unused.
_POSITIONS = (1.0, 0.5, 0.0, -0.5, -1.0, -1.5)

Codes = NDArray[np.uint8]

# What a byte's two codes of 4 bits are in steps of the scale: two float32, side by side, that a complex number carries.
_PAIRS = np.array([(byte % 16 - 8, byte // 16 - 8) for byte in range(256)], np.float32).view(np.complex64)[:, 0]


def quantize(rows: Float32, form: Blocks) -> tuple[Codes, Float32]:
    """Quantise rows [n, columns]: codes uint8 [n, blocks, bytes of a block] and scales float32 [n, blocks].

    A scale is not finite where its block is not; the codes of such a block mean nothing.
    """
    n, columns = rows.shape
    count = form.count(columns)
    if columns % form.size:
        rows = np.pad(rows, ((0, 0), (0, count * form.size - columns)))
    flat = np.ascontiguousarray(rows).reshape(-1, form.size)
    codes = np.empty((len(flat), form.size_bytes), np.uint8)
    scales = np.empty(len(flat), np.float32)
    fit = _search if form.searched else _fit
    for start in range(0, len(flat), _RUN):
        run = slice(start, start + _RUN)
        whole, scales[run] = fit(flat[run], form.bits)
        codes[run] = _packed(whole, form.bits)
    return codes.reshape(n, count, -1), scales.reshape(n, count)


def dequantize(codes: Codes, scales: Float32, columns: int, bits: int) -> Float32:
    """Return the rows that ``codes`` [n, blocks, bytes] and ``scales`` [n, blocks] stand for: float32 [n, columns]."""
    values = np.empty((*codes.shape[:2], codes.shape[2] * 8 // bits), np.float32)
    step = max(1, _RUN // codes.shape[1])
    for start in range(0, len(codes), step):
        part = slice(start, start + step)
        if bits == 4:
            np.take(_PAIRS, codes[part], out=values[part].view(np.complex64), mode="clip")
        else:
            np.subtract(codes[part], np.float32(2 ** (bits - 1)), out=values[part])
        values[part] *= scales[part, :, None]
    return values.reshape(len(codes), -1)[:, :columns]


def bound(form: Blocks) -> float:
    """Return the largest |w' - w| / |w| of a row (L2 norms) that the scheme allows.

    In steps s of a block of n: its largest element has magnitude h = 2**(bits - 1) and no error. Each of the others
    adds e**2 to the squared error and w**2 to the squared norm; the ratio is worst where all of them lie half-way
    between codes 0 and 1 step, e = w = 1/2. (The largest code is h - 1, so that an element near +h is clipped by up
    to a whole step, but it also adds h**2 to the norm: a smaller ratio.) Hence sqrt((n-1)/4 / (h**2 + (n-1)/4)): 0.329
    for 4 bits in blocks of 32, 0.444 in 64, 0.0217 and 0.031 for 8. float32 arithmetic moves a half by at most 2**-16.
    A search tries the plain scale too, and so is never worse.
    """
    half = 2 ** (form.bits - 1)
    error = (form.size - 1) * (0.5 + 2.0**-14) ** 2
    return math.sqrt(error / (half**2 + error))


def _fit(blocks: Float32, bits: int) -> tuple[Codes, Float32]:
    """Return the plain codes and scales, those of onnxruntime's quantiser."""
    half = 2 ** (bits - 1)
    high, low = _fold(np.maximum, blocks), _fold(np.minimum, blocks)
    # Where both signs reach the magnitude, onnxruntime takes the negative one.
    extreme = np.where(high > -low, high, low)
    # And where all are zeros, the sign of the first; which zero a maximum returns depends on the processor.
    zeros = extreme == 0
    extreme[zeros] = blocks[zeros, 0]
    scales = np.divide(extreme, np.float32(-half), dtype=np.float32)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(1.0) / scales
        # A block of zeros, or of numbers so small that the inverse overflows, has the code of zero throughout.
        inverse[~np.isfinite(inverse)] = 0
        steps = blocks * inverse[:, None]
        steps += np.float32(half + 0.5)
        # Never below 0, so that truncation is floor; only the end opposite the extreme can exceed the last code.
        np.minimum(steps, np.float32(2 * half - 1), out=steps)
        return steps.astype(np.uint8), scales


def _search(blocks: Float32, bits: int) -> tuple[Codes, Float32]:
    """Return the codes and scales of least squared error among those that ``_POSITIONS`` lead to.

    Each position gives codes q; the scale that fits them best is (w . q) / (q . q), and what it leaves of the squared
    norm is smallest where (w . q)**2 / (q . q) is largest. Elements are taken in units of the largest, which no square
    can overflow. Every operation is exactly rounded and sums have one order, so that all hosts find the same.
    """
    half = 2 ** (bits - 1)
    columns = blocks.T.copy()
    high, low = columns.max(axis=0), columns.min(axis=0)
    extreme = np.where(high > -low, high, low)
    with np.errstate(all="ignore"):
        inverse = np.float32(1) / extreme
        inverse[~np.isfinite(inverse)] = 0
        columns *= inverse
        best = np.zeros_like(columns)
        scales, most = np.zeros(len(blocks), np.float32), np.zeros(len(blocks), np.float32)
        for position in _POSITIONS:
            steps = np.rint(columns * np.float32(-(half + position)))
            np.clip(steps, np.float32(-half), np.float32(half - 1), out=steps)
            along, square = add_up(columns * steps), add_up(steps * steps)
            kept = along * along / square
            better = kept > most
            np.copyto(best, steps, where=better)
            np.copyto(most, kept, where=better)
            np.copyto(scales, along / square, where=better)
        scales *= extreme
    best += np.float32(half)
    np.copyto(scales, extreme, where=~np.isfinite(extreme))  # whose inverse was taken for zero: it must show
    return best.astype(np.uint8).T, scales


def _packed(whole: Codes, bits: int) -> Codes:
    if bits == 8:
        return whole
    pairs = np.ascontiguousarray(whole).view("<u2")
    packed: Codes = (pairs | (pairs >> 4)).astype(np.uint8)
    return packed


def _fold(reduce: np.ufunc, blocks: Float32) -> Float32:
    """Reduce over the columns by halving: a reduction along a short axis is several times slower."""
    width = blocks.shape[1]
    while width > 1:
        width //= 2
        blocks = reduce(blocks[:, :width], blocks[:, width:])
    return blocks[:, 0].copy()
