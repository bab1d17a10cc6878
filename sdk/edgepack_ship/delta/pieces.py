"""A file in pieces: what is copied, what is added to what stands elsewhere, and what is new, in the fewest bytes."""

from __future__ import annotations

import itertools
import os
import zlib
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np

from edgepack_ship.delta.format import BLOCK, LITERAL, PIECE
from edgepack_ship.delta.matching import Bytes, Near, stretches

_CELL = 1 << 16
"""A cell without a change is copied. In another, zeros are added to what has not changed, which take few bytes."""
_LONGEST = 1 << 31
_PAYS = 7.2
"""Bits a byte, by the frequencies of bytes alone, from which on deflating saves too little for its time."""
_STRATEGIES = zlib.Z_DEFAULT_STRATEGY, zlib.Z_RLE
"""Repetitions are looked for, as texts have them; or only the frequent bytes are shortened, as weights have them."""


class Opened:
    """An open file."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def at(self, begin: int, length: int) -> Bytes:
        """Return so many bytes from ``begin`` on, fewer where the file ends."""
        return np.frombuffer(os.pread(self._descriptor, length, begin), np.uint8)


class Pieces:
    """The pieces of which a file is made, out of sources and of literals that are written to ``literals``."""

    def __init__(self, new: Opened, sources: Sequence[Opened], literals: BinaryIO) -> None:
        self._new, self._sources, self._literals = new, sources, literals
        self._pieces: list[tuple[int, int, int, int]] = []

    def table(self, numbers: Sequence[int]) -> bytes:
        """Return all pieces, as records of ``PIECE``. ``numbers`` are what the index calls the sources."""
        for stretch in stretches(self._new, self._sources):
            for begin in range(stretch.begin, stretch.end, BLOCK):
                self._add(begin, min(BLOCK, stretch.end - begin), stretch.near)
        table = np.array(self._pieces, PIECE)
        known = table["source"] != LITERAL
        table["source"][known] = np.array(numbers, np.uint32)[table["source"][known]]
        return table.tobytes()

    def _add(self, begin: int, length: int, near: tuple[Near, ...]) -> None:
        """Add the pieces of at most a ``BLOCK``."""
        data = self._new.at(begin, length)
        best, added = self._nearest(begin, data, near)
        if best is None:
            self._store(data, None, begin, data)
            return
        changed = np.logical_or.reduceat(added != 0, np.arange(0, length, _CELL))
        edges = [0, *(np.flatnonzero(np.diff(changed)) + 1).tolist(), len(changed)]
        for first, last in itertools.pairwise(edges):
            cells = slice(first * _CELL, min(last * _CELL, length))
            if changed[first]:
                self._store(data[cells], best, begin + cells.start, added[cells])
            else:
                self._copy(best, begin + cells.start, cells.stop - cells.start)

    def _nearest(self, begin: int, data: Bytes, near: tuple[Near, ...]) -> tuple[Near | None, Bytes]:
        """Return where most of the bytes are the same, and what must be added to what stands there."""
        best: tuple[Near | None, Bytes] = None, data
        most = 0
        for each in near:
            at = begin + each.distance
            if at < 0 or at + len(data) > self._sources[each.source].size:
                continue
            added = data - self._sources[each.source].at(at, len(data))
            if (same := len(data) - int(np.count_nonzero(added))) > most:
                best, most = (each, added), same
        return best

    def _copy(self, near: Near, begin: int, length: int) -> None:
        offset = begin + near.distance
        if self._pieces:
            source, before, stored, first = self._pieces[-1]
            if (source, stored, first + before) == (near.source, 0, offset) and before < _LONGEST:
                self._pieces[-1] = source, before + length, 0, first
                return
        self._pieces.append((near.source, length, 0, offset))

    def _store(self, data: Bytes, near: Near | None, begin: int, added: Bytes) -> None:
        """Add a piece with literals: the bytes themselves, or what must be added to what is near."""
        source, offset = LITERAL, 0
        if near is not None and _bits(added) < _bits(data):
            source, offset = near.source, begin + near.distance
        literals = _deflated(data if near is None or source == LITERAL else added)
        self._literals.write(literals)
        self._pieces.append((source, len(data), len(literals), offset))


def _bits(data: Bytes) -> float:
    """Return the bits that a byte takes by the frequency of each, of a sample."""
    counts = np.bincount(data[::13] if len(data) > _CELL else data)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum())


def _deflated(data: Bytes) -> bytes:
    """Return bytes as they are stored: in the way that shortens them most, judged by a sample, or as they are."""
    if _bits(data) > _PAYS:
        return data.tobytes()
    best = min(_STRATEGIES, key=lambda strategy: len(_by(strategy, data[:_CELL])))
    return min(data.tobytes(), _by(best, data), key=len)  # of one length: as they are


def _by(strategy: int, data: Bytes) -> bytes:
    stream = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS, zlib.DEF_MEM_LEVEL, strategy)
    return stream.compress(data.tobytes()) + stream.flush()
