"""The loops of reading weights, compiled by numba. Importing it takes half a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.jit import compiled

_HALF = np.uint32(16)
_EXPONENT = np.uint32(0x7F800000)


@compiled
def widen(stored: NDArray[np.uint16], bits: NDArray[np.uint32]) -> None:
    """Fill ``bits`` [n] with those of the float32 of the same value as each bfloat16, whose upper half it is."""
    for i in range(len(stored)):
        bits[i] = np.uint32(stored[i]) << _HALF


@compiled
def finite(bits: NDArray[np.uint32]) -> bool:
    """Return whether all numbers are finite whose bits as float32 are these: [n]."""
    most = np.uint32(0)
    for i in range(len(bits)):
        most = max(most, bits[i] & _EXPONENT)
    return bool(most < _EXPONENT)
