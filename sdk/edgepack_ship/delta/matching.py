"""Finds where the bytes of a file stand in others, moved by any distance, in memory that does not grow with them.

It knows arrays, and nothing of bundles, of formats of weights or of how a difference is written. A file is followed
along the same distance for as long as enough of it agrees, as where some weights of many have changed. Where it does
not, a block of a source is looked for at every place: sums of the bytes before each place, times powers of a number,
give the hash of the block there by one subtraction, for millions of places at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

BLOCKS = 1 << 16
"""The blocks of a source that are looked for, at most: what bounds the pieces of a file, and the time."""
LEAST_BLOCK = 32
WORD = 8
"""What of a large file has moved has moved by a multiple of this: tensors are aligned."""
BY_BYTE = 16 << 20
"""A file up to this size, such as a text, is looked at from every byte on."""
SPAN = 1 << 20
"""Places that are looked at together."""
ENOUGH = 0.25
"""The share of equal bytes of a block from which on it counts as changed, and is not looked for elsewhere: weights of
4 bits that a LoRA moved are equal to 0.6 and more, unrelated ones to 0.02, words of a text to 0.1."""

_FILTER_BITS = 20
_FACTOR = 0x9E3779B97F4A7C15
_INVERSE = pow(_FACTOR, -1, 1 << 64)


class Readable(Protocol):
    """A file of ``size`` bytes."""

    @property
    def size(self) -> int: ...

    def at(self, begin: int, length: int) -> Bytes:
        """Return so many bytes from ``begin`` on, fewer where the file ends."""
        ...


@dataclass(frozen=True, slots=True)
class Near:
    """A source by its number, and the distance from a place in the file to the same bytes in it."""

    source: int
    distance: int


@dataclass(frozen=True, slots=True)
class Stretch:
    """The bytes of a file from ``begin`` to ``end``, and where what is like them may stand: nowhere, or one of two."""

    begin: int
    end: int
    near: tuple[Near, ...]


def stretches(new: Readable, sources: Sequence[Readable]) -> Iterator[Stretch]:
    """Yield a file from its beginning to its end, each stretch with the place in the sources that it is like."""
    if not sources:
        yield Stretch(0, new.size, ())
        return
    largest = max(new.size, *(source.size for source in sources))
    block = max(LEAST_BLOCK, 1 << (largest // BLOCKS).bit_length())
    blocks = Blocks(sources, block, 1 if largest <= BY_BYTE else WORD)
    near = Near(0, 0)
    place = 0
    while place < new.size:
        if (end := _followed(new, sources, near, place, block)) > place:
            yield Stretch(place, end, (near,))
            place = end
            continue
        found, next = blocks.find(new, place)
        if next is not None:
            found = _back(new, sources[next.source], next, place, found)
        if found > place:
            yield Stretch(place, found, (near,) if next in (None, near) else (near, next))
        near, place = next or near, found


def _followed(new: Readable, sources: Sequence[Readable], near: Near, place: int, block: int) -> int:
    """Return where a file ceases to be like a source from ``place`` on."""
    source = sources[near.source]
    limit = min(new.size, source.size - near.distance)
    if place + near.distance < 0:
        return place
    step = 16 * block
    while place < limit:
        length = min(step, limit - place)
        equal = new.at(place, length) == source.at(place + near.distance, length)
        whole = length // block * block
        shares = np.count_nonzero(equal[:whole].reshape(-1, block), axis=1) / block
        if whole < length:
            shares = np.append(shares, equal[whole:].mean())
        if (other := shares < ENOUGH).any():
            begin = int(other.argmax()) * block
            rest = equal[begin:]
            return place + begin + (int(rest.argmin()) if not rest.all() else len(rest))
        place += length
        step = min(4 * step, max(SPAN * WORD, block))
    return place


def _back(new: Readable, source: Readable, near: Near, place: int, found: int) -> int:
    """Return where the bytes begin that are equal up to ``found``, not before ``place``."""
    length = min(found - place, found + near.distance)
    equal = new.at(found - length, length) == source.at(found + near.distance - length, length)
    differing = np.flatnonzero(~equal)
    return found - length + (int(differing[-1]) + 1 if len(differing) else 0)


class Blocks:
    """The blocks of the sources by their hashes. ``step`` is the bytes of a number that is hashed: 1, or ``WORD``."""

    def __init__(self, sources: Sequence[Readable], block: int, step: int) -> None:
        self._sources, self._block, self._step = sources, block, step
        hashes, places = [], []
        for number, source in enumerate(sources):
            for begin in range(0, source.size // block * block, max(SPAN * WORD, block)):
                length = min(max(SPAN * WORD, block), source.size // block * block - begin)
                rows = self._numbers(source.at(begin, length)).reshape(-1, block // step)
                hashes.append(rows @ _powers(_INVERSE, block // step))
                places += [(number, begin + row * block) for row in range(len(rows))]
        all_hashes = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
        self._hashes, first = np.unique(all_hashes, return_index=True)
        self._places = np.array(places, np.int64).reshape(-1, 2)[first]
        self._filter = np.zeros(1 << _FILTER_BITS, np.bool_)
        self._filter[self._hashes >> np.uint64(64 - _FILTER_BITS)] = True
        self._begin = self._end = 0
        self._found: NDArray[np.int64] = np.empty(0, np.int64)

    def find(self, new: Readable, place: int) -> tuple[int, Near | None]:
        """Return where a block of a source stands next; or up to where none does, and None."""
        if not self._begin <= place < self._end:
            self._look(new, place)
        for found in self._found[np.searchsorted(self._found, place) :].tolist():
            data = new.at(found, self._block)
            source, offset = self._places[np.searchsorted(self._hashes, self._hash(data))].tolist()
            if np.array_equal(data, self._sources[source].at(offset, self._block)):
                return found, Near(source, offset - found)
        return self._end, None

    def _look(self, new: Readable, place: int) -> None:
        """Find all places of a window where a block may stand."""
        step, count = self._step, self._block // self._step
        begin = -(-place // step) * step
        data = new.at(begin, SPAN * step + self._block)
        if len(data) < self._block:
            self._begin, self._end, self._found = place, new.size, self._found[:0]
            return
        numbers = self._numbers(data[: len(data) // step * step])
        before = np.zeros(len(numbers) + 1, np.uint64)
        np.multiply(numbers, _powers(_INVERSE, len(numbers)), out=before[1:])
        np.cumsum(before, out=before)
        hashes = before[count:] - before[:-count]
        hashes *= _powers(_FACTOR, len(hashes))
        candidates = np.flatnonzero(self._filter[hashes >> np.uint64(64 - _FILTER_BITS)])
        rows = np.searchsorted(self._hashes, hashes[candidates])
        rows[rows == len(self._hashes)] = 0
        candidates = candidates[self._hashes[rows] == hashes[candidates]]
        last = begin + len(hashes) * step
        self._begin, self._found = place, begin + candidates * step
        self._end = last if last + self._block <= new.size else new.size

    def _hash(self, data: Bytes) -> np.uint64:
        return np.uint64(self._numbers(data) @ _powers(_INVERSE, self._block // self._step))

    def _numbers(self, data: Bytes) -> NDArray[np.uint64]:
        return data.astype(np.uint64) if self._step == 1 else data.view("<u8")


def _powers(factor: int, count: int) -> NDArray[np.uint64]:
    """Return the powers of a number from its zeroth on, modulo 2^64."""
    powers = np.full(count, factor, np.uint64)
    powers[:1] = 1
    return np.multiply.accumulate(powers)
