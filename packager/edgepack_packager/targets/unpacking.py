"""What packed levels stand for, read back in one pass: loops that numba compiles. Importing it takes half a second.

Levels follow one another as in one long little-endian number, whatever their bits, up to 8. A group of them, a multiple
of 8, has a scale, and a bias or a zero point.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

Bytes = NDArray[np.uint8]

TILE = 4096
"""Levels that are unpacked at a time, so that what multiplies them finds them in the nearest cache."""


@compiled
def affine(packed: Bytes, bits: int, scales: Float32, biases: Float32, values: Float32) -> None:
    """Fill ``values``, float32 [groups, size], with level * scale + bias; ``packed`` is uint8 [bytes]."""
    groups, size = values.shape
    step = max(1, TILE // size)
    levels = np.empty(step * size, np.uint8)
    for first in range(0, groups, step):
        stop = min(first + step, groups)
        _unpack(packed[first * size * bits // 8 : stop * size * bits // 8], bits, levels)
        for group in range(first, stop):
            ours, scale, bias = values[group], scales[group], biases[group]
            own = levels[(group - first) * size : (group - first + 1) * size]
            for i in range(len(ours)):
                ours[i] = np.float32(own[i]) * scale + bias


@compiled
def signed(packed: Bytes, bits: int, scales: Float32, zeros: Bytes, values: Float32) -> None:
    """Fill ``values``, float32 [groups, size], with (level - zero) * scale; ``packed`` is uint8 [bytes], ``zeros`` are
    uint8 [groups]."""
    groups, size = values.shape
    step = max(1, TILE // size)
    levels = np.empty(step * size, np.uint8)
    for first in range(0, groups, step):
        stop = min(first + step, groups)
        _unpack(packed[first * size * bits // 8 : stop * size * bits // 8], bits, levels)
        for group in range(first, stop):
            ours, scale, zero = values[group], scales[group], np.float32(zeros[group])
            own = levels[(group - first) * size : (group - first + 1) * size]
            for i in range(len(ours)):
                ours[i] = (np.float32(own[i]) - zero) * scale


@inlined
def _unpack(packed: Bytes, bits: int, levels: Bytes) -> None:
    if bits == 8:
        for i in range(len(packed)):
            levels[i] = packed[i]
    elif bits == 4:
        for i in range(len(packed)):
            levels[2 * i] = packed[i] & 15
            levels[2 * i + 1] = packed[i] >> 4
    else:
        for i in range(len(packed) // bits):  # eight levels are as many bytes as a level has bits
            eight = np.uint64(0)
            for byte in range(bits):
                eight |= np.uint64(packed[i * bits + byte]) << np.uint64(8 * byte)
            for level in range(8):
                levels[8 * i + level] = np.uint8(eight >> np.uint64(bits * level) & np.uint64((1 << bits) - 1))
