"""A rope's tables: cosine and sine of every position's angles, the same bits on every host.

A library's cosine may differ in its last bit from one processor to the next. Here are only additions and
multiplications in float64, which IEEE 754 defines exactly; the error before the last rounding is below 1e-15.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import factorial

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.rope import Rope
from edgepack_packager.checkpoint.weights import Float32

Float64 = NDArray[np.float64]

_ROWS_ELEMENTS = 128 * 1024
# pi/2 in two parts. The first has 33 significant bits, so that its product with a quadrant's number is exact.
_HALF_PI_HIGH = float.fromhex("0x1.921fb544p+0")
_HALF_PI_LOW = float.fromhex("0x1.0b4611a626331p-34")


def tables(rope: Rope, context: int) -> Iterator[tuple[int, Float32, Float32]]:
    """Yield (first position, cosines, sines) over all positions, in blocks of float32 [positions, dim / 2].

    An angle is the float32 product of position and frequency, as engines and transformers compute it. Both carry the
    rope's magnitude.
    """
    frequencies = rope.frequencies()
    step = max(1, _ROWS_ELEMENTS // len(frequencies))
    for start in range(0, context, step):
        positions = np.arange(start, min(start + step, context), dtype=np.float32)
        cosine, sine = cosine_and_sine((positions[:, None] * frequencies).astype(np.float64))
        yield start, (cosine * rope.magnitude).astype(np.float32), (sine * rope.magnitude).astype(np.float32)


def cosine_and_sine(angles: Float64) -> tuple[Float64, Float64]:
    """Return cosines and sines of angles in radians, 0 <= angle < 2**20.

    The angle is reduced to [-pi/4, pi/4] around a quadrant, where the Taylor series to x**16 and x**17 are exact
    to 1e-16.
    """
    quadrant = np.rint(angles * (2 / np.pi))
    rest = (angles - quadrant * _HALF_PI_HIGH) - quadrant * _HALF_PI_LOW
    square = rest * rest
    cosine = _series(square, range(16, -1, -2))
    sine = _series(square, range(17, 0, -2)) * rest
    index = quadrant.astype(np.int64) & 3
    return np.choose(index, (cosine, -sine, -cosine, sine)), np.choose(index, (sine, cosine, -sine, -cosine))


def _series(square: Float64, powers: range) -> Float64:
    """Evaluate the sum of (-1)**(n // 2) * x**n / n! over the powers n, without their common lowest power of x."""
    total = np.zeros_like(square)
    for power in powers:
        total = total * square + (-1) ** (power // 2) / factorial(power)
    return total
