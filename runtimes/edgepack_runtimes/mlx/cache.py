"""The KV cache of one layer, and which of its columns the rows of a step see."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray


class LayerCache:
    """Keys and values of one layer, [1, KV heads, context, head dimension], in a type of their own.

    It is whole from the start: its memory is known when the model is loaded, and no step copies it. A layer with a
    window keeps what has left the window, so that a session can rewind.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, window: int | None) -> None:
        self.offset = 0
        self.keys = mx.zeros(shape, dtype)
        self.values = mx.zeros(shape, dtype)
        self._window = window

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append the keys and values of a step and return all that a row of it sees, in the type that came in."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys[..., start : self.offset, :] = keys.astype(self.keys.dtype)
        self.values[..., start : self.offset, :] = values.astype(self.values.dtype)
        first = start - seen_before(start, self._window)
        return (
            self.keys[..., first : self.offset, :].astype(keys.dtype),
            self.values[..., first : self.offset, :].astype(values.dtype),
        )

    def filled(self) -> list[memoryview]:
        """Return the keys and the values that the cache holds, as bytes: uint8 [KV heads, offset, bytes of a head]."""
        parts = (self.keys[0, :, : self.offset], self.values[0, :, : self.offset])
        return [np.asarray(mx.contiguous(part).view(mx.uint8)).data for part in parts]

    def fill(self, keys: NDArray[np.uint8], values: NDArray[np.uint8]) -> None:
        """Replace what the cache holds with the bytes that ``filled`` gave."""
        self.offset = keys.shape[1]
        self.keys[0, :, : self.offset] = mx.array(keys).view(self.keys.dtype)
        self.values[0, :, : self.offset] = mx.array(values).view(self.values.dtype)
        mx.eval(self.keys, self.values)


def seen_before(offset: int, window: int | None) -> int:
    """Return how many of ``offset`` earlier positions the next one sees; a window counts the position itself."""
    return offset if window is None else min(offset, window - 1)


def causal_mask(rows: int, offset: int, window: int | None) -> mx.array | None:
    """Return what a step of ``rows`` tokens after ``offset`` sees of the columns that ``LayerCache.append`` returns.

    bool [rows, columns], true where row and column belong together; None where every row sees every column.
    """
    if rows == 1:
        return None
    before = seen_before(offset, window)
    column = mx.arange(before + rows)[None]
    row = mx.arange(before, before + rows)[:, None]
    causal = column <= row
    return causal if window is None or before + rows <= window else causal & (column > row - window)
