"""What an adapter makes of a tensor: another in its place, a product of two thin matrices on top, its rows' lengths.

It computes in float32, a block of rows at a time, and its bits are the same on every host: sums are made of whole
numbers that float64 adds exactly in any order, so that neither BLAS nor a processor decides how they are rounded.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint.safetensors import FLOATS, SafetensorsFile
from edgepack_packager.checkpoint.weights import Float32, row_blocks

_PIECE = 1 << 20
"""Elements that are computed at a time, in float64."""


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor of an adapter's file, which holds it the other way round where it is ``turned``."""

    file: SafetensorsFile
    name: str
    turned: bool = False

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape that it is read in."""
        shape = self.file.entries[self.name].shape
        return shape[::-1] if self.turned else shape

    @property
    def n_rows(self) -> int:
        """The first size of that shape, 0 of a single number."""
        return self.shape[0] if self.shape else 0

    def rows(self, start: int, stop: int) -> Float32:
        """Return rows [start, stop) as float32; of one that is turned, the file is read whole."""
        if not self.turned:
            return self.file.rows(self.name, start, stop)
        return self.file.rows(self.name, 0, self.shape[1]).T[start:stop]

    def check(self) -> None:
        """Refuse what holds no numbers, or some that are not finite."""
        entry, place = self.file.entries[self.name], f"{self.file.path}: the tensor {self.name}"
        if entry.dtype not in FLOATS:
            raise UnsupportedModelError(
                f"{place} is stored as {entry.dtype}; edgepack reads F64, F32, F16 and BF16.",
                hint="Save the adapter without quantisation.",
            )
        for start, stop in row_blocks(entry.shape):
            if not np.isfinite(self.file.rows(self.name, start, stop)).all():
                raise SourceError(
                    f"{place} has a NaN or an infinity.", hint="Train again, or take a checkpoint from before it."
                )


@dataclass(frozen=True, slots=True)
class Change:
    """W' = M (V + s L R) / |V + s L R|: first ``whole`` V in W's place, then the product, then the rows' lengths M.

    ``left`` is L [rows, rank], ``right`` R [rank, columns], ``scale`` s; ``magnitude`` M [rows] is DoRA's
    (arXiv:2402.09353, equation 5), over rows as PEFT and mlx-lm store them. What is None is left out.
    """

    whole: Part | None = None
    left: Part | None = None
    right: Part | None = None
    magnitude: Part | None = None
    scale: float = 1.0

    @property
    def tensors(self) -> Iterator[Part]:
        """The tensors of the file that it is made of."""
        return (each for each in (self.whole, self.left, self.right, self.magnitude) if each is not None)

    def same(self, other: Change) -> bool:
        """Say whether another change has the same numbers."""
        ours, theirs = ((each.whole, each.left, each.right, each.magnitude) for each in (self, other))
        return self.scale == other.scale and all(_equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def check(self, shape: tuple[int, ...]) -> None:
        """Refuse what does not fit a tensor of that shape. Raises ``SourceError``, as ``Part.check`` does."""
        if self.whole is not None:
            _fit(self.whole, shape)
        if self.left is not None and self.right is not None:
            _fit(self.left, (*shape[:1], *self.right.shape[:1]))
            _fit(self.right, (*self.left.shape[1:], *shape[1:]))
        if self.magnitude is not None:
            _fit(self.magnitude, shape[:1])
        for each in self.tensors:
            each.check()

    def rows(self, start: int, rows: Float32, scale: float = 1.0) -> Float32:
        """Return what becomes of rows from ``start`` on, with ``scale`` times the product: float32 of their shape."""
        stop = start + len(rows)
        if self.whole is not None:
            rows = self.whole.rows(start, stop)
        if self.left is not None and self.right is not None:
            left, right = self.left.rows(start, stop), self.right.rows(0, self.right.n_rows)
            rows = rows + _product(left, right, self.scale * scale)
        if self.magnitude is not None:
            with np.errstate(divide="ignore", invalid="ignore"):
                rows = rows * (self.magnitude.rows(start, stop) / _lengths(rows))[:, None]
        return rows


def is_positive(value: object) -> TypeGuard[float]:
    """Say whether a value of a config is a number above 0 that a rank or a scale can be."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1e9


def _equal(a: Part | None, b: Part | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and all(np.array_equal(a.rows(*rows), b.rows(*rows)) for rows in row_blocks(a.shape))


def _fit(found: Part, shape: tuple[int, ...]) -> None:
    if found.shape != shape or 0 in shape:
        stored = list(found.file.entries[found.name].shape)
        wanted = list(shape[::-1] if found.turned else shape)
        more = found.n_rows - shape[0]
        if found.shape[1:] == shape[1:] and more > 0 and found.name.endswith(("embed_tokens.weight", "lm_head.weight")):
            raise UnsupportedModelError(
                f"{found.file.path}: the tensor {found.name} has {more} rows more than the model's vocabulary, for "
                "tokens that were added to it.",
                hint="Merge it with PEFT, save the model with the tokenizer that it was trained with, and build that.",
            )
        raise SourceError(
            f"{found.file.path}: the tensor {found.name} has the shape {stored}; for this model it must have {wanted}.",
            hint="Give the model that the adapter was trained on.",
        )


def _product(left: Float32, right: Float32, scale: float) -> Float32:
    """Return scale left @ right: float32 [n, columns] of [n, rank] and [rank, columns].

    Each number is rounded to a multiple of 2^-b of the power of two above the largest of its row of ``left``, or column
    of ``right``. b is 24, as in a float32, for ranks up to 32, and one less for each four times as many.
    """
    bits = _bits(right.shape[0])
    second, seconds = _whole(right, 0, bits)
    result = np.empty((len(left), right.shape[1]), np.float32)
    step = max(1, _PIECE // right.shape[1])
    for start in range(0, len(left), step):
        first, firsts = _whole(left[start : start + step], 1, bits)
        result[start : start + step] = np.ldexp(first @ second, firsts + seconds) * scale
    return result


def _lengths(rows: Float32) -> Float32:
    """Return the length of each row, float32 [n], in the same way; b is 20 for 8192 columns."""
    result = np.empty(len(rows), np.float32)
    step = max(1, _PIECE // rows.shape[1])
    for start in range(0, len(rows), step):
        whole, exponents = _whole(rows[start : start + step], 1, _bits(rows.shape[1]))
        result[start : start + step] = np.ldexp(np.sqrt(np.square(whole).sum(axis=1)), exponents[:, 0])
    return result


def _bits(terms: int) -> int:
    """Return how many bits two numbers may have, so that a sum of so many of their products has 53."""
    return (53 - math.ceil(math.log2(terms))) // 2


def _whole(x: Float32, axis: int, bits: int) -> tuple[NDArray[np.float64], NDArray[np.int32]]:
    """Return whole numbers of that many bits and the exponents, one along ``axis``, of the powers of two that x is
    their product with."""
    _, exponents = np.frexp(np.abs(x).max(axis=axis, keepdims=True))
    exponents = exponents - np.int32(bits)
    return np.rint(np.ldexp(x.astype(np.float64), -exponents)), exponents
