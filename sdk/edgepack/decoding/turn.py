"""A request's place in the queue, and what a request that keeps its turn for a while has to offer the desk."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Protocol


def nothing() -> None:
    return None


class Holder(Protocol):
    """A request that keeps its turn from one piece of work to the next, such as a stream."""

    _caller: FrameType | None
    """The frame that has it open: what that frame calls meanwhile could only wait for itself."""
    _over: bool
    """Whether it needs the desk no more."""

    def _start(self) -> None:
        """On the owner's thread: the turn has come. What it raises ends the turn, and goes to who waits for it."""
        ...

    def _go_on(self) -> bool:
        """On the owner's thread: do a piece of work that nobody asked for yet. False: the turn is needed no more."""
        ...

    def cancel(self) -> None:
        """From any thread: end as soon as the engine can."""
        ...

    def _stop(self) -> None:
        """From any thread: end now, because the desk closes."""
        ...


@dataclass(eq=False, slots=True)
class Turn:
    """A request's place at the desk. ``begin`` is called on the owner's thread when its turn has come.

    The desk keeps no holder alive: ``holder`` is None for a request that ``begin`` serves whole.
    """

    begin: Callable[[], None]
    cancel: Callable[[], None] = nothing
    holder: weakref.ReferenceType[Holder] | None = None
    begun: bool = False
    over: bool = False
    used: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it was given back, or nobody can give it back any more."""
        holder = None if self.holder is None else self.holder()
        return self.over or (self.holder is not None and (holder is None or holder._over))

    def touch(self) -> None:
        """Note that its request uses it."""
        self.used = monotonic()
