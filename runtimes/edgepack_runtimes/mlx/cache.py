"""What one layer keeps of the tokens: keys and values, of which the rows of a step see some columns; or a state."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgepack.device.memory import ROOM


class LayerCache:
    """Keys and values of one layer, [1, KV heads, cells, head dimension], in a type of their own.

    It is whole from the start: its memory is known when the model is loaded. Without a window, or with cells for the
    whole context, no step copies it. Where a layer with a window has fewer, the last ``ROOM`` windows move to its
    beginning when it is full: what has left a window stays for at least another, so that a session can rewind.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: mx.Dtype, window: int | None) -> None:
        self.offset = 0
        self._base = 0  # the position of the first cell
        self.keys = mx.zeros(shape, dtype)
        self.values = mx.zeros(shape, dtype)
        self._window = window
        self._lent: tuple[mx.array, mx.array] | None = None

    def append(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append the keys and values of a step and return all that a row of it sees, in the type that came in.

        They are ``lent`` to other layers until ``claim``.
        """
        start, self.offset = self.offset, self.offset + keys.shape[2]
        if self._window is not None and self.offset - self._base > self.cells:
            self._move(start - ROOM * self._window)
        first = start - seen_before(start, self._window) - self._base
        cell, end = start - self._base, self.offset - self._base
        self.keys[..., cell:end, :] = keys.astype(self.keys.dtype)
        self.values[..., cell:end, :] = values.astype(self.values.dtype)
        seen = self.keys[..., first:end, :].astype(keys.dtype), self.values[..., first:end, :].astype(values.dtype)
        self._lent = seen
        return seen

    @property
    def lent(self) -> tuple[mx.array, mx.array]:
        """What ``append`` returned in this step."""
        assert self._lent
        return self._lent

    def claim(self) -> None:
        """End the step: who held what it saw would have the next one copy the cache before it is written to."""
        self._lent = None

    def _move(self, base: int) -> None:
        moved = slice(base - self._base, self.cells)
        end = self.cells - moved.start
        self.keys[..., :end, :] = self.keys[..., moved, :]
        self.values[..., :end, :] = self.values[..., moved, :]
        self._base = base

    def copy(self, other: LayerCache) -> None:
        """Hold what another cache of the same measure holds."""
        self.offset, self._base = other.offset, other._base
        # Arrays of its own: an assignment to a part changes the array for all who hold it.
        self.keys, self.values = mx.array(other.keys), mx.array(other.values)

    @property
    def cells(self) -> int:
        """Tokens that it has room for."""
        return self.keys.shape[2]

    @property
    def heads(self) -> int:
        """Heads of keys and values."""
        return self.keys.shape[1]

    @property
    def head_bytes(self) -> int:
        """Bytes of a head's keys of one token."""
        return self.keys.shape[3] * self.keys.dtype.size

    @property
    def base(self) -> int:
        """The position of the oldest token that it holds."""
        return self._base

    def holds(self, length: int) -> bool:
        """Whether all that the token after ``length`` others sees is there."""
        return self._base <= length - seen_before(length, self._window)

    def cut(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, which it holds as far as they are seen, or all."""
        self.offset, self._base = length, min(self._base, length)

    def filled(self) -> list[memoryview]:
        """Return the keys and the values that the cache holds, as bytes: uint8 [KV heads, tokens, bytes of a head]."""
        held = self.offset - self._base
        parts = (self.keys[0, :, :held], self.values[0, :, :held])
        return [np.asarray(mx.contiguous(part).view(mx.uint8)).data for part in parts]

    def fill(self, base: int, keys: NDArray[np.uint8], values: NDArray[np.uint8]) -> None:
        """Replace what the cache holds with the bytes that ``filled`` gave, from the position ``base`` on."""
        held = keys.shape[1]
        self._base, self.offset = base, base + held
        self.keys[0, :, :held] = mx.array(keys).view(self.keys.dtype)
        self.values[0, :, :held] = mx.array(values).view(self.values.dtype)
        mx.eval(self.keys, self.values)


class StateCache:
    """What a layer keeps whatever the number of tokens, by what it is: ``conv``, the last rows that it convolves, [1,
    rows, channels] in the type of what comes in, and ``delta``, the matrices of its delta rule, [1, heads, value
    dimension, key dimension] in float32.

    Arrays are replaced, never written to, so that a mark is the arrays themselves. It can be cut nowhere.
    """

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self.offset = 0
        self.shapes = shapes
        self.state: Mapping[str, mx.array] = {}  # zeros

    def append(self, rows: mx.array) -> mx.array:
        """Append the rows of a step, and return them behind those that were kept: [1, kept + rows, channels]."""
        self.offset += rows.shape[1]
        joined = mx.concatenate([self.of("conv", rows.dtype), rows], axis=1)
        self.keep("conv", mx.contiguous(joined[:, -self.shapes["conv"][0] :]))
        return joined

    def of(self, part: str, dtype: mx.Dtype) -> mx.array:
        """Return a part in a type."""
        return self.state[part].astype(dtype) if part in self.state else mx.zeros((1, *self.shapes[part]), dtype)

    def keep(self, part: str, array: mx.array) -> None:
        """Replace a part."""
        self.state = {**self.state, part: array}

    def put(self, length: int, state: Mapping[str, mx.array]) -> None:
        """Stand after ``length`` tokens with the state that was there; an empty one before the first."""
        self.offset, self.state = length, state

    @property
    def size(self) -> int:
        """Bytes of what ``filled`` gives."""
        return 4 * sum(math.prod(shape) for shape in self.shapes.values())

    def filled(self) -> bytes:
        """Return the state as bytes of float32, which holds every type, part by part."""
        parts = [np.asarray(mx.contiguous(self.of(part, mx.float32))).tobytes() for part in self.shapes]
        return b"".join(parts)

    def fill(self, length: int, state: NDArray[np.uint8]) -> None:
        """Stand after ``length`` tokens with the bytes that ``filled`` gave."""
        values = np.ascontiguousarray(state).view(np.float32)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes.values()])[:-1]
        parts = zip(self.shapes.items(), np.split(values, ends), strict=True)
        self.put(length, {name: mx.array(part.reshape(1, *shape)) for (name, shape), part in parts})


Cache = LayerCache | StateCache
Mask = mx.array | Literal["causal"] | None


class Part(NamedTuple):
    """What a layer's mixer is told of a sequence: which tokens of the step are its, what they see, and what is kept."""

    span: slice
    mask: Mask
    cache: Cache


def split(x: mx.array, parts: Sequence[Part]) -> list[mx.array]:
    """Return the rows [1, n, size] of each sequence of a step."""
    return [x] if len(parts) == 1 else [x[:, part.span] for part in parts]


def join(rows: Sequence[mx.array]) -> mx.array:
    """Return the rows of all sequences as those of one step."""
    return rows[0] if len(rows) == 1 else mx.concatenate(list(rows), axis=1)


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


def near_mask(rows: int, window: int) -> mx.array:
    """Return which of so many tokens see each other over less than a window, to both sides: bool [rows, rows]."""
    place = mx.arange(rows)
    return mx.abs(place[:, None] - place[None]) < window
