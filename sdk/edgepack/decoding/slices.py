"""The logits after each token of a sequence, slice by slice, so that few of them are held at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.desk import Desk
from edgepack.decoding.seat import Ask, Logits, Seat
from edgepack.decoding.turn import Turn


class Slices:
    """An iterator over logits from an empty cache: float32 [at most size, n_vocab] each.

    A slice is one step. Where others were served between two slices, those before are evaluated again, in the same
    steps.
    """

    def __init__(self, desk: Desk, ids: Sequence[int], size: int) -> None:
        desk.check()
        self._caller: FrameType | None = None
        self._over = False
        self._done = False
        self._seat: Seat
        self._desk = desk
        self._ids = list(ids)
        self._size = size
        self._next = 0
        self._turn: Turn | None = None

    def __iter__(self) -> Slices:
        return self

    def __next__(self) -> NDArray[np.float32]:
        if self._over or self._next >= len(self._ids):
            self.close()
            raise StopIteration
        try:
            self._caller = None
            if self._turn is None or self._turn.over:
                self._turn = self._desk.enter(self)
            rows = self._desk.owner.call(self._evaluate, self.cancel)
        except BaseException:
            self.close()
            raise
        self._caller = sys._getframe(1)
        return rows

    def close(self) -> None:
        """Give the model back. Safe to call twice."""
        self._over = True
        self._caller = None
        if self._turn is not None:
            self._desk.leave(self._turn)

    # As the desk's holder

    @property
    def _prompt(self) -> Sequence[int]:
        return self._ids

    def _start(self, seat: Seat) -> None:
        self._seat = seat

    def _ask(self, unread: bool) -> Ask | None:
        return None  # it evaluates by itself, and gives way where nobody takes the next slice

    def _tell(self, given: Logits | BaseException) -> None:
        return None

    def cancel(self) -> None:
        self._desk.cancel(self._turn)

    def _stop(self) -> None:
        self.cancel()

    # On the owner's thread

    def _evaluate(self) -> NDArray[np.float32]:
        seat, ids, size = self._seat, self._ids, self._size
        if (seat.cache.tokens, seat.cache.steps) != (ids[: self._next], [(size, size)] * (self._next // size)):
            seat.rewind(0)
            for start in range(0, self._next, size):
                seat.forward_all(ids[start : start + size])
        rows = seat.forward_all(ids[self._next : self._next + size])
        self._next += size
        if self._turn is not None:
            self._turn.touch()
        return rows
