"""ggml's blocks of 32 with scales that lose least where it counts: errors are weighed by their column's importance.

The same blocks as ``quantize`` writes plainly. ``kernels`` has the searches, which are ggml's with an importance matrix
(``make_qx_quants``, ``make_qkx3_quants``), and as deterministic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf import kernels
from edgepack_packager.targets.gguf.kquants import louder

Codes = NDArray[np.uint8]
BLOCK = 32


def signed(rows: Float32, importance: Float32, bits: int) -> tuple[Codes, Float32]:
    """Return codes [n, 32], from 0 to 2**bits - 1, and scales [n] of half precision, of all blocks of rows.

    value = (code - 2**(bits - 1)) * scale. ``rows``: float32 [n, columns]; ``importance``: float32 [columns]. Raises
    ``FloatingPointError`` for a scale that half precision cannot hold.
    """
    blocks, weights = _blocks(rows, importance)
    half = 2 ** (bits - 1)
    steps = np.array([half, *(half + 0.1 * by for by in range(-9, 10) if by)], np.float32)
    fits = np.empty((len(blocks), 2), np.float32)
    kernels.fit_signed(blocks, weights, -steps, fits)
    scale = _half(fits[:, 0])
    levels = np.empty(blocks.shape, np.int8)
    zero = np.zeros_like(scale)
    kernels.levels(blocks, scale, zero, zero, zero, np.array([-half, half - 1], np.int32), levels)
    return (levels + np.int8(half)).view(np.uint8), scale


def affine(rows: Float32, importance: Float32, bits: int) -> tuple[Codes, Float32, Float32]:
    """Return codes [n, 32], scales [n] and minima [n], both of half precision: value = code * scale + minimum.

    Arguments as in ``signed``.
    """
    blocks, weights = _blocks(rows, importance)
    top = 2**bits - 1
    steps = np.array([top, *(top - 0.9 + 0.05 * by for by in range(37))], np.float32)
    fits = np.empty((len(blocks), 4), np.float32)
    kernels.fit_affine(blocks, weights, steps, fits)
    scale, minimum = _half(fits[:, 0]), _half(fits[:, 1])
    levels = np.empty(blocks.shape, np.int8)
    zero = np.zeros_like(scale)
    kernels.levels(blocks, scale, -minimum, zero, zero, np.array([0, top], np.int32), levels)
    return levels.view(np.uint8), scale, minimum


def _blocks(rows: Float32, importance: Float32) -> tuple[Float32, Float32]:
    blocks = rows.reshape(-1, BLOCK)
    counts = np.broadcast_to(importance, rows.shape).reshape(-1, BLOCK)
    return blocks, counts * louder(blocks, np.float32(1))


def _half(values: Float32) -> Float32:
    """Round to half precision, in float32. Raises ``FloatingPointError`` for what is beyond it."""
    with np.errstate(over="raise"):
        return values.astype(np.float16).astype(np.float32)
