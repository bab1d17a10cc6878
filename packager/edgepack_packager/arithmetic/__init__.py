"""The arithmetic that a decoder is computed with: BLAS and numpy, or what gives the same bits on every host."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from edgepack_packager.checkpoint.weights import Float32


class Arithmetic(Protocol):
    """The operations whose last bits a processor or a library may decide; all arrays are float32.

    What numpy computes with + - * / and sqrt, and a largest or a smallest of numbers, is the same everywhere.
    """

    def product(self, x: Float32, rows: Float32) -> Float32:
        """Return x rows^T of x [n, depth] and rows [m, depth]: [n, m]."""
        ...

    def total(self, x: Float32) -> Float32:
        """Return the sums over the last axis, which is kept: [..., 1]."""
        ...

    def exp(self, x: Float32) -> Float32:
        """Return e to the power of each number; infinity beyond float32."""
        ...

    def log1p(self, x: Float32) -> Float32:
        """Return the logarithm of 1 + x of numbers from 0 to 1."""
        ...

    def tanh(self, x: Float32) -> Float32: ...

    def cos(self, x: Float32) -> Float32: ...

    def sin(self, x: Float32) -> Float32: ...


class Fastest:
    """What BLAS and numpy have for this processor."""

    def product(self, x: Float32, rows: Float32) -> Float32:
        """Return x rows^T, in the order of this processor's kernels."""
        result: Float32 = x @ rows.T
        return result

    def total(self, x: Float32) -> Float32:
        """Return numpy's sums over the last axis."""
        result: Float32 = x.sum(axis=-1, keepdims=True)
        return result

    def exp(self, x: Float32) -> Float32:
        """Return e to the power of each number; infinity beyond float32."""
        with np.errstate(over="ignore"):
            result: Float32 = np.exp(x)
        return result

    def log1p(self, x: Float32) -> Float32:
        """Return numpy's."""
        return np.log1p(x)

    def tanh(self, x: Float32) -> Float32:
        """Return numpy's."""
        return np.tanh(x)

    def cos(self, x: Float32) -> Float32:
        """Return numpy's."""
        return np.cos(x)

    def sin(self, x: Float32) -> Float32:
        """Return numpy's."""
        return np.sin(x)


FASTEST = Fastest()
