"""What packed levels stand for: one long little-endian number of them, whatever their bits."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack_packager.targets import unpacking

GROUPS = 133  # more than are unpacked at a time, and no multiple of that


def packed(levels: list[int], bits: int) -> np.ndarray:
    number = sum(level << bits * place for place, level in enumerate(levels))
    return np.frombuffer(number.to_bytes(len(levels) * bits // 8, "little"), np.uint8)


@pytest.mark.parametrize("size", [32, 128])
@pytest.mark.parametrize("bits", range(1, 9))
def test_levels_of_any_bits_are_multiplied(bits: int, size: int) -> None:
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, 2**bits, (GROUPS, size))
    scales, biases = rng.standard_normal((2, GROUPS, 1), np.float32)
    values = np.empty((GROUPS, size), np.float32)
    data = packed(levels.reshape(-1).tolist(), bits)

    unpacking.affine(data, bits, scales[:, 0].copy(), biases[:, 0].copy(), values)
    np.testing.assert_array_equal(values, levels.astype(np.float32) * scales + biases)

    zeros = rng.integers(0, 2**bits, (GROUPS, 1), np.uint8)
    unpacking.signed(data, bits, scales[:, 0].copy(), zeros[:, 0].copy(), values)
    np.testing.assert_array_equal(values, (levels - zeros).astype(np.float32) * scales)
