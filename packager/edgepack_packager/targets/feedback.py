"""Errors made good: each level is chosen next to what the errors of the levels before it leave of its weight.

A matrix W becomes W', and E = W - W'. With H = X^T X of the inputs X that it is multiplied with, H + diag(H) =
(U + 1) D (U + 1)^T and U strictly upper triangular, each column's levels are the nearest to T = W + E U, to which only
columns before it add: so the error of the products is least, to the second order, column by column (arXiv:2307.13304).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32

BLOCK = 128
"""Columns that are rounded one by one, before those behind them learn of their errors."""

FARTHEST = 1.5
"""How much more a row may err than with its nearest levels. Where many columns hang together errors may add up until
levels end: a row of q in SmolLM2's first layer erred by 1.2 times what it holds in 2 bits."""


class Packed(Protocol):
    """The numbers of a triangle, uint16 [n], in memory or on a disk."""

    def __getitem__(self, place: slice, /) -> NDArray[np.uint16]: ...


@dataclass(frozen=True, slots=True)
class Part:
    """Columns of a matrix that make good each other's errors.

    ``columns``: which they are, in the order that they are rounded in: intp [n]. ``packed``: U as ``pack`` returns it.
    """

    columns: NDArray[np.intp]
    packed: Packed

    def panel(self, start: int) -> Float32:
        """Return the rows of U from ``start`` on, ``BLOCK`` or what is left: float32 [rows, n - start]."""
        width = len(self.columns) - start
        first = size(len(self.columns)) - size(width)
        upper = self.packed[first : first + min(BLOCK, width) * width].astype(np.uint32) << 16
        return upper.view(np.float32).reshape(-1, width)

    def whole(self) -> Float32:
        """Return U: float32 [n, n]."""
        found = np.zeros((len(self.columns),) * 2, np.float32)
        for start in range(0, len(found), BLOCK):
            found[start : start + BLOCK, start:] = self.panel(start)
        return found


Feedback = Sequence[Part]
"""The parts of a matrix, which together have each of its columns once."""


def pack(factor: Float32) -> NDArray[np.uint16]:
    """Return U [n, n] as its numbers are kept: of ``BLOCK`` rows at a time, from the diagonal on, as bfloat16."""
    rows = range(0, len(factor), BLOCK)
    bits = np.concatenate([factor[start : start + BLOCK, start:].reshape(-1) for start in rows]).view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))) >> np.uint32(16)).astype(np.uint16)


def size(columns: int) -> int:
    """Return the numbers that ``pack`` keeps of a U with so many columns."""
    return sum(min(BLOCK, columns - start) * (columns - start) for start in range(0, columns, BLOCK))


def levels(
    rows: Float32, feedback: Feedback, scales: Float32, biases: Float32, group: int, top: int
) -> NDArray[np.uint8]:
    """Return the levels of rows [n, columns], from 0 to ``top``, that make good each other's errors.

    A weight is level * scale + bias; ``scales`` and ``biases`` of each ``group`` neighbours, as a reader has them:
    float32 [n, groups]. A row that would err more than ``FARTHEST`` times as much as with its nearest levels keeps
    those. Bits are the same on every host, and each row's its own.
    """
    from edgepack_packager.arithmetic.repeatable import REPEATABLE
    from edgepack_packager.targets import levelling

    found = np.empty(rows.shape, np.uint8)
    steps, lowest = np.ascontiguousarray(scales.T), np.ascontiguousarray(biases.T)
    for part in feedback:
        weights = np.ascontiguousarray(rows[:, part.columns].T)
        meant, chosen = weights.copy(), np.empty(weights.shape, np.uint8)
        for start in range(0, len(weights), BLOCK):
            run, panel = slice(start, start + BLOCK), part.panel(start)
            count = len(panel)
            of = part.columns[run] // group
            errors = np.empty((count, len(rows)), np.float32)
            levelling.choose(weights[run], meant[run], panel, steps, lowest, of, np.float32(top), chosen[run], errors)
            if count < panel.shape[1]:
                meant[start + count :] += REPEATABLE.product(panel[:, count:].T, errors.T)
        found[:, part.columns] = chosen.T
    levelling.keep_near(rows, scales, biases, group, np.float32(top), FARTHEST, found)
    return found
