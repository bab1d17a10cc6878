"""Sums that are the same on every host."""

from __future__ import annotations

import numpy as np

from edgepack_packager.checkpoint.weights import Float32


def add_up(columns: Float32) -> Float32:
    """Return the sum over the first axis, whose length is a power of two, of an array that it overwrites.

    By halving: the order depends neither on the processor nor on how many columns there are.
    """
    height = len(columns)
    while height > 1:
        height //= 2
        np.add(columns[:height], columns[height : 2 * height], out=columns[:height])
    total: Float32 = columns[0]
    return total
