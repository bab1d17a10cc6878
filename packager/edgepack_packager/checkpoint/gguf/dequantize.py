"""What the bytes of a GGUF tensor stand for: K-quants by loops that numba compiles, all else by the package ``gguf``.

The loops are written from ``dequantize_row_q4_K``, ``..._q5_K`` and ``..._q6_K`` in ggml-quants.c and share nothing
with what writes those blocks. They give the package's numbers to the last bit, in a fifth to a third of its time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32

Bytes = NDArray[np.uint8]


def dequantize(kind: str, rows: Bytes) -> Float32:
    """Return the values of rows in one of ggml's types ("Q4_K"): uint8 [n, row bytes] as float32 [n, columns]."""
    if kind in ("Q4_K", "Q5_K", "Q6_K"):
        return _k_quants(kind, rows)
    if kind == "Q8_K":
        return _q8_k(rows)
    if kind == "Q1_0":
        return _q1_0(rows)
    if kind == "Q2_0":
        return _q2_0(rows)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as by_gguf

    values: Float32 = by_gguf(rows, GGMLQuantizationType[kind])
    return values


def _k_quants(kind: str, rows: Bytes) -> Float32:
    from edgepack_packager.checkpoint.gguf import unpacking

    unpack, block_bytes, halves = {
        "Q4_K": (unpacking.q4, 144, slice(0, 4)),
        "Q5_K": (unpacking.q5, 176, slice(0, 4)),
        "Q6_K": (unpacking.q6, 210, slice(208, 210)),
    }[kind]
    blocks = rows.reshape(-1, block_bytes)
    units = np.ascontiguousarray(blocks[:, halves]).view("<f2").astype(np.float32)
    values = np.empty((len(blocks), 256), np.float32)
    unpack(blocks, units, values)
    return values.reshape(len(rows), -1)


def _q8_k(rows: Bytes) -> Float32:
    """A float32 unit, 256 levels of 8 bits, and sums of them that only products need."""
    blocks = rows.reshape(-1, 292)
    units = np.ascontiguousarray(blocks[:, :4]).view("<f4")
    values: Float32 = units * blocks[:, 4:260].view(np.int8)
    return values.reshape(len(rows), -1)


def _q1_0(rows: Bytes) -> Float32:
    """A half-precision scale, and 128 signs of it (``dequantize_row_q1_0``)."""
    blocks = rows.reshape(-1, 18)
    units = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    values: Float32 = np.where(np.unpackbits(blocks[:, 2:], axis=1, bitorder="little"), units, -units)
    return values.reshape(len(rows), -1)


def _q2_0(rows: Bytes) -> Float32:
    """A half-precision scale, and 64 levels of two bits from -1 to 2 (``dequantize_row_q2_0``)."""
    blocks = rows.reshape(-1, 18)
    units = np.ascontiguousarray(blocks[:, :2]).view("<f2").astype(np.float32)
    levels = (blocks[:, 2:, None] >> np.arange(0, 8, 2, dtype=np.uint8) & 3).reshape(-1, 64).astype(np.int8) - 1
    values: Float32 = units * levels
    return values.reshape(len(rows), -1)
