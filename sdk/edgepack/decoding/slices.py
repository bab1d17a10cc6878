"""The logits after each token of a sequence, slice by slice, so that few of them are held at once."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import FrameType

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.desk import Desk
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

    def _start(self) -> None:
        return None

    def _go_on(self) -> bool:
        return False

    def cancel(self) -> None:
        self._desk.cancel(self._turn)

    def _stop(self) -> None:
        self.cancel()

    # On the owner's thread

    def _evaluate(self) -> NDArray[np.float32]:
        desk, ids, size = self._desk, self._ids, self._size
        if (desk.cache.tokens, desk.cache.steps) != (ids[: self._next], [(size, size)] * (self._next // size)):
            desk.rewind(0)
            for start in range(0, self._next, size):
                desk.forward_all(ids[start : start + size])
        rows = desk.forward_all(ids[self._next : self._next + size])
        self._next += size
        if self._turn is not None:
            self._turn.touch()
        return rows
