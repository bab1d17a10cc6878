"""Weights: the canonical tensors of a decoder, read in blocks of rows. Everything downstream reads through this."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder

Float32 = NDArray[np.float32]

BLOCK_ELEMENTS = 4 * 1024 * 1024


class Weights(Protocol):
    """The tensors that ``decoder`` names, as float32.

    ``dtype`` is the element type that the source stores ("f32", "f16" or "bf16"): a writer that keeps the source's
    precision needs it, and a float32 value always is exactly one of that type.
    """

    @property
    def decoder(self) -> Decoder:
        """The description of the tensors."""
        ...

    @property
    def dtype(self) -> str:
        """The source's element type of its matrices: "f32", "f16" or "bf16"."""
        ...

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop): float32 [stop - start, columns] of a matrix, [stop - start] of a vector."""
        ...


def finite(values: Float32) -> bool:
    """Return whether no value is a NaN or an infinity; of any shape."""
    from edgepack_packager.checkpoint import kernels

    return kernels.finite(np.ascontiguousarray(values).reshape(-1).view(np.uint32))


def blocks(decoder: Decoder) -> Iterator[tuple[str, int, int]]:
    """Yield (name, start, stop) over all tensors in model order, each block at most ``BLOCK_ELEMENTS`` elements.

    A block starts and ends at a multiple of the head dimension, so that per-head transforms need one block only.
    """
    for name, shape in decoder.tensors():
        for start, stop in row_blocks(shape, decoder.head_multiple):
            yield name, start, stop


def row_blocks(shape: tuple[int, ...], multiple: int = 1, elements: int = BLOCK_ELEMENTS) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) that cover the first dimension in blocks of at most ``elements``, or of ``multiple`` rows."""
    columns = shape[1] if len(shape) == 2 else 1
    step = max(1, elements // columns // multiple) * multiple
    for start in range(0, shape[0], step):
        yield start, min(start + step, shape[0])
