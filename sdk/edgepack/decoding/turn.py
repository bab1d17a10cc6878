"""A request's place in the queue, and what a request that keeps its turn for a while has to offer the desk."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from types import FrameType
from typing import Protocol

from edgepack.decoding.seat import Ask, Logits, Seat


class Holder(Protocol):
    """A request that keeps its turn from one piece of work to the next, such as a stream."""

    _caller: FrameType | None
    """The frame that has it open: what that frame calls meanwhile could only wait for itself."""
    _over: bool
    """Whether it needs the desk no more."""
    _done: bool
    """Whether it needs no more steps."""

    @property
    def _prompt(self) -> Sequence[int]:
        """The token ids that it begins with."""
        ...

    def _start(self, seat: Seat) -> None:
        """On the owner's thread: the turn has come. What it raises ends the turn, and goes to who waits for it."""
        ...

    def _ask(self, unread: bool) -> Ask | None:
        """On the owner's thread: return the step that it needs, None for none now. Never raises.

        ``unread``: others wait, and nobody has read it for a while, so that it is to go on by itself or to give way.
        """
        ...

    def _tell(self, given: Logits | BaseException) -> None:
        """On the owner's thread: go on with what the step that it asked for gave. Never raises."""
        ...

    def cancel(self) -> None:
        """From any thread: end as soon as the engine can."""
        ...

    def _stop(self) -> None:
        """From any thread: end now, because the desk closes."""
        ...


@dataclass(eq=False, slots=True)
class Turn:
    """A request's place at the desk. ``begin`` is called on the owner's thread when its turn has come, with its seat.

    The desk keeps no holder alive: ``held_by`` is None for a request that ``begin`` serves whole. ``awaits`` are the
    turn that evaluates a beginning which this one shares, and how many tokens of it. ``served`` is the round in which a
    part of its prompt was evaluated last; ``answers`` says that all of it was.
    """

    begin: Callable[[Seat], None]
    held_by: weakref.ReferenceType[Holder] | None = None
    seat: Seat | None = None
    awaits: tuple[Turn, int] | None = None
    served: int = 0
    answers: bool = False
    begun: bool = False
    over: bool = False
    used: float = 0.0

    @property
    def has_ended(self) -> bool:
        """Whether it was given back, or nobody can give it back any more."""
        return self.over or (self.held_by is not None and ((holder := self.holder) is None or holder._over))

    @property
    def holder(self) -> Holder | None:
        """Who keeps it, None where it is served whole or nobody has its request any more."""
        return None if self.held_by is None else self.held_by()

    def touch(self) -> None:
        """Note that its request uses it."""
        self.used = monotonic()
