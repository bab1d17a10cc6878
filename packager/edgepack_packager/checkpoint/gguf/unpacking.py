"""The loops of ``dequantize``: blocks, uint8 [n, bytes], and their half-precision units become float32 [n, 256].

Importing it takes half a second.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

Bytes = NDArray[np.uint8]


@compiled
def q4(blocks: Bytes, units: Float32, values: Float32) -> None:
    """Two units, eight scales and minima of 6 bits, then levels: two groups lie in the low and high halves of 32."""
    for b in range(len(blocks)):
        for pair in range(4):
            codes, two = blocks[b, 16 + 32 * pair : 48 + 32 * pair], values[b, 64 * pair : 64 * pair + 64]
            scale, minimum = _scale_and_minimum(blocks[b], units[b], 2 * pair)
            for i in range(32):
                two[i] = scale * np.float32(codes[i] & 15) - minimum
            scale, minimum = _scale_and_minimum(blocks[b], units[b], 2 * pair + 1)
            for i in range(32):
                two[32 + i] = scale * np.float32(codes[i] >> 4) - minimum


@compiled
def q5(blocks: Bytes, units: Float32, values: Float32) -> None:
    """As q4, with 32 bytes before the levels: of each, bit g is the fifth of a level of group g."""
    for b in range(len(blocks)):
        for group in range(8):
            scale, minimum = _scale_and_minimum(blocks[b], units[b], group)
            first, shift = 48 + group // 2 * 32, group % 2 * 4
            for i in range(32):
                level = blocks[b, first + i] >> shift & 15 | (blocks[b, 16 + i] >> group & 1) << 4
                values[b, group * 32 + i] = scale * np.float32(level) - minimum


@compiled
def q6(blocks: Bytes, units: Float32, values: Float32) -> None:
    """The low four bits of all levels, their high two, sixteen scales of 8 bits, and the unit.

    A byte of the high bits has those of four levels, 32 apart.
    """
    levels = np.empty(256, np.uint8)
    for b in range(len(blocks)):
        for half in range(2):
            low, high = blocks[b, 64 * half : 64 * half + 64], blocks[b, 128 + 32 * half : 160 + 32 * half]
            four = levels[128 * half : 128 * half + 128]
            for i in range(32):
                four[i] = low[i] & 15 | (high[i] & 3) << 4
                four[32 + i] = low[32 + i] & 15 | (high[i] >> 2 & 3) << 4
                four[64 + i] = low[i] >> 4 | (high[i] >> 4 & 3) << 4
                four[96 + i] = low[32 + i] >> 4 | high[i] >> 6 << 4
        for group in range(16):
            scale = units[b, 0] * np.float32(np.int8(blocks[b, 192 + group]))
            ours, own = values[b, 16 * group : 16 * group + 16], levels[16 * group : 16 * group + 16]
            for i in range(16):
                ours[i] = scale * (np.float32(own[i]) - np.float32(32))


@inlined
def _scale_and_minimum(block: Bytes, units: Float32, group: int) -> tuple[np.float32, np.float32]:
    """Of a block's twelve bytes from the fifth on, the last four hold the low bits of groups 4 to 7."""
    if group < 4:
        scale, minimum = block[4 + group] & 63, block[8 + group] & 63
    else:
        scale = block[8 + group] & 15 | block[group] >> 6 << 4
        minimum = block[8 + group] >> 4 | block[4 + group] >> 6 << 4
    return units[0] * np.float32(scale), units[1] * np.float32(minimum)
