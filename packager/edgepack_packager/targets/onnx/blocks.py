"""Symmetric block quantisation as MatMulNBits and GatherBlockQuantized read it, in numpy, the same on every host.

A block of 32 columns has one float32 scale, its signed largest element over -2**(bits - 1), so that this element is
represented exactly by code 0; value = (code - 2**(bits - 1)) * scale. Two 4-bit codes share a byte, the first in
the low half. The bytes are those of onnxruntime's own quantiser.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.onnx.layout import BLOCK, blocks_of

# Blocks that are quantised at once: intermediate arrays stay at a megabyte, whatever the size of the source's rows.
_RUN = 8192

Codes = NDArray[np.uint8]


def quantize(rows: Float32, bits: int) -> tuple[Codes, Float32]:
    """Quantise rows [n, columns]: codes uint8 [n, blocks, 4 * bits] and scales float32 [n, blocks].

    A scale is not finite where its block is not; the codes of such a block mean nothing.
    """
    n, columns = rows.shape
    count = blocks_of(columns)
    if columns % BLOCK:
        rows = np.pad(rows, ((0, 0), (0, count * BLOCK - columns)))
    flat = np.ascontiguousarray(rows).reshape(-1, BLOCK)
    codes = np.empty((len(flat), BLOCK * bits // 8), np.uint8)
    scales = np.empty(len(flat), np.float32)
    for start in range(0, len(flat), _RUN):
        run = slice(start, start + _RUN)
        _quantize_run(flat[run], bits, codes[run], scales[run])
    return codes.reshape(n, count, -1), scales.reshape(n, count)


def dequantize(codes: Codes, scales: Float32, columns: int) -> Float32:
    """Return the rows that ``codes`` [n, blocks, bytes] and ``scales`` [n, blocks] stand for: float32 [n, columns]."""
    if codes.shape[-1] < BLOCK:
        codes = np.stack((codes & 15, codes >> 4), axis=-1).reshape(*codes.shape[:2], BLOCK)
        zero = np.float32(8)
    else:
        zero = np.float32(128)
    values = (codes.astype(np.float32) - zero) * scales[..., None]
    return values.reshape(len(codes), -1)[:, :columns]


def bound(bits: int) -> float:
    """Return the largest |w' - w| / |w| of a row (L2 norms) that the scheme allows.

    In steps s of a block: its largest element has magnitude h = 2**(bits - 1) and no error. Each of the other 31
    adds e**2 to the squared error and w**2 to the squared norm; the ratio is worst where all of them lie half-way
    between codes 0 and 1 step, e = w = 1/2. (The largest code is h - 1, so that an element near +h is clipped by up
    to a whole step, but it also adds h**2 to the norm: a smaller ratio.) Hence
    sqrt(31/4 / (h**2 + 31/4)): 0.329 for 4 bits, 0.0217 for 8. float32 arithmetic moves a half by at most 2**-16.
    """
    half = 2 ** (bits - 1)
    error = (BLOCK - 1) * (0.5 + 2.0**-14) ** 2
    return math.sqrt(error / (half**2 + error))


def _quantize_run(blocks: Float32, bits: int, codes: Codes, scales: Float32) -> None:
    half = 2 ** (bits - 1)
    high, low = _fold(np.maximum, blocks), _fold(np.minimum, blocks)
    # Where both signs reach the magnitude, onnxruntime takes the negative one.
    extreme = np.where(high > -low, high, low)
    # And where all are zeros, the sign of the first; which zero a maximum returns depends on the processor.
    zeros = extreme == 0
    extreme[zeros] = blocks[zeros, 0]
    np.divide(extreme, np.float32(-half), out=scales)
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(1.0) / scales
        # A block of zeros, or of numbers so small that the inverse overflows, has the code of zero throughout.
        inverse[~np.isfinite(inverse)] = 0
        steps = blocks * inverse[:, None]
        steps += np.float32(half + 0.5)
        # Never below 0, so that truncation is floor; only the end opposite the extreme can exceed the last code.
        np.minimum(steps, np.float32(2 * half - 1), out=steps)
        whole = steps.astype(np.uint8)
    if bits == 8:
        codes[:] = whole
        return
    pairs = whole.view("<u2")
    codes[:] = pairs | (pairs >> 4)


def _fold(reduce: np.ufunc, blocks: Float32) -> Float32:
    """Reduce over the columns by halving: a reduction along a short axis is several times slower."""
    width = blocks.shape[1]
    while width > 1:
        width //= 2
        blocks = reduce(blocks[:, :width], blocks[:, width:])
    return blocks[:, 0].copy()
