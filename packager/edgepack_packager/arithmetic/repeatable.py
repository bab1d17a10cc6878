"""Arithmetic that gives the same bits on every host, at the speed of BLAS.

Every sum has one order, along its terms, and all else is + - * / of IEEE 754, which round exactly; ``jit`` keeps the
compiler from fusing or reordering them. Vectors of any width lie across the columns of a result, each of which sums
alone. BLAS fuses, and sums in the order of its processor; exp, tanh, cos and sin of numpy and libm differ by host.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.arithmetic import kernels
from edgepack_packager.checkpoint.weights import Float32

Float64 = NDArray[np.float64]

WIDTH = 256
"""Columns of a panel: four rows of it and of a result stay in the nearest cache."""

BLOCK = 128
"""Columns that ``cholesky`` factors one by one, before those behind them learn of it."""


class Repeatable:
    """An ``Arithmetic`` whose results depend on its arguments alone. What it sums, it sums in their order."""

    def product(self, x: Float32, rows: Float32) -> Float32:
        """Return x rows^T: every element the sum along the depth, from its first term on, in float32."""
        depth = -(-x.shape[1] // kernels.DEPTH) * kernels.DEPTH
        inputs = np.zeros((-(-len(x) // kernels.ROWS) * kernels.ROWS, depth), np.float32)
        inputs[: len(x), : x.shape[1]] = x
        result = np.zeros((len(inputs), len(rows)), np.float32)
        panel = np.zeros((depth, min(WIDTH, len(rows))), np.float32)
        for left in range(0, len(rows), WIDTH):
            some = rows[left : left + WIDTH]
            panel[: x.shape[1], : len(some)] = some.T
            kernels.multiply(inputs, panel, left, result)
        return result[: len(x)]

    def total(self, x: Float32) -> Float32:
        """Return the sums over the last axis: in float64, rounded once."""
        result = np.empty((*x.shape[:-1], 1), np.float32)
        kernels.add_up(np.ascontiguousarray(x).reshape(-1, x.shape[-1]), result.reshape(-1))
        return result

    def exp(self, x: Float32) -> Float32:
        """Return e to the power of each number, to within half a unit and 2^-24 of one in the last place."""
        result = np.empty(x.shape, np.float32)
        kernels.exp(np.ascontiguousarray(x).reshape(-1), result.reshape(-1))
        return result

    def log1p(self, x: Float32) -> Float32:
        """Return 2 artanh(x / (2 + x)) of numbers from 0 to 1, to within half a unit and 2^-24 of one."""
        result = np.empty(x.shape, np.float32)
        kernels.log1p(np.ascontiguousarray(x).reshape(-1), result.reshape(-1))
        return result

    def tanh(self, x: Float32) -> Float32:
        """Return (e^2x - 1) / (e^2x + 1), of numbers near zero to within 2^-52."""
        result = np.empty(x.shape, np.float32)
        kernels.tanh(np.ascontiguousarray(x).reshape(-1), result.reshape(-1))
        return result

    def cos(self, x: Float32) -> Float32:
        """Return the cosine of angles below 2^20 radians."""
        return self._turned(x, 1)

    def sin(self, x: Float32) -> Float32:
        """Return the sine of angles below 2^20 radians."""
        return self._turned(x, 0)

    def _turned(self, x: Float32, quarters: int) -> Float32:
        result = np.empty(x.shape, np.float32)
        kernels.sin(np.ascontiguousarray(x).reshape(-1), quarters, result.reshape(-1))
        return result

    def squares(self, x: Float32) -> Float64:
        """Return the sum of the squares in each column of x [n, columns]: float64 [columns]."""
        result = np.zeros(x.shape[1], np.float64)
        kernels.add_squares(np.ascontiguousarray(x), result)
        return result

    def add_moments(self, x: Float32, sums: Float32) -> None:
        """Add x^T x of x [n, columns] to the lower triangle of ``sums`` [columns, columns], row after row of x."""
        columns = np.ascontiguousarray(x.T)
        for left in range(0, len(columns), WIDTH):
            sums[left:, left : left + WIDTH] += self.product(columns[left:], columns[left : left + WIDTH])

    def cholesky(self, matrix: Float32) -> None:
        """Replace a positive definite matrix [n, n], of which the lower triangle is read, by L with L L^T = matrix.

        What is above the diagonal means nothing, before and after. Blocks on it are factored in float64.
        """
        for start in range(0, len(matrix), BLOCK):
            stop = min(start + BLOCK, len(matrix))
            block = matrix[start:stop, start:stop].astype(np.float64)
            inverse = np.empty_like(block)
            kernels.factor(block, inverse)
            matrix[start:stop, start:stop] = block
            below = self.product(matrix[stop:, start:stop], inverse.astype(np.float32))
            matrix[stop:, start:stop] = below
            for left in range(stop, len(matrix), WIDTH):
                rest = below[left - stop :]
                matrix[left:, left : left + WIDTH] -= self.product(rest, rest[:WIDTH])


REPEATABLE = Repeatable()
