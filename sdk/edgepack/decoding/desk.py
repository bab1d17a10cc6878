"""Where requests queue for an engine: as many at a time as it has sequences, in the order in which they came, and none
after it failed.

A turn belongs to its request, whichever threads and tasks read it. The owner's thread alone hands it on, where no
signal's handler can come between, and looks again every second while somebody waits. So whoever holds a seat cannot
keep it: a request that ended in whatever way is passed over, one whose stream nobody has any more too, and one that
was not read for a second comes to its end without its reader, who finds the rest ready later.

Between two pieces of work the owner's thread evaluates one step of whatever is asked for: of one sequence, or of
several together, see ``edgepack.decoding.seating``.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from threading import RLock, main_thread
from time import monotonic
from types import FrameType
from typing import TypeVar

from edgepack.decoding.cache import Cache
from edgepack.decoding.draft import Draft
from edgepack.decoding.owner import Bell, Outcome, Owner
from edgepack.decoding.seat import Ask, Logits, Seat, Seats
from edgepack.decoding.seating import choose, is_prompt, loses, source, together
from edgepack.decoding.turn import Holder, Turn
from edgepack.errors import Cancelled, EngineError, UsageError
from edgepack.runtime import Options, Session

T = TypeVar("T")

_LAST_WORDS_S = 10.0
_PATIENCE_S = 1.0


class Desk:
    """A session with its owner thread and its caches' bookkeeping, which serves as many requests at a time as the
    session has sequences.

    ``drafting`` opens a draft model beside it, on the same thread. Both are closed when nobody can reach the desk any
    more, and before the interpreter ends.
    """

    def __init__(
        self, opening: Callable[[], Session], options: Options, drafting: Callable[[], Draft] | None = None
    ) -> None:
        self.options = options
        self._turns: list[Turn | None] = [None] * options.sequences  # of each seat, the last
        self._waiting: deque[Turn] = deque()
        self._round = 0
        self._closing = False
        self._opened = False
        # Re-entrant, because a signal handler may cancel while its own thread is inside.
        self._lock = RLock()
        self._late = RLock()
        self.owner = Owner("edgepack", _weakly(weakref.WeakMethod(self._look)))
        opened: list[Session] = []
        drafts: list[Draft] = []
        try:
            self.owner.call(lambda: opened.append(opening()))
            self.session = opened[0]
            if drafting is not None:
                self.owner.call(lambda: drafts.append(drafting()))
            self.draft = drafts[0] if drafts else None
            self.seats = Seats(self.session, options, self.draft)
            self._opened = True
            self._end = weakref.finalize(self, _shut_down, self.owner, self.session, self.draft)
        except BaseException:
            self.owner.stop(lambda: _close(*opened, *drafts))  # behind an opening that was interrupted
            raise

    @property
    def parallel(self) -> bool:
        """Whether several requests run at a time. Then streams run ahead of their readers."""
        return len(self._turns) > 1

    @property
    def seat(self) -> Seat:
        """The first sequence, which is the only one but for a parallel desk."""
        return self.seats[0]

    @property
    def cache(self) -> Cache:
        """What the first sequence holds."""
        return self.seat.cache

    # Turns

    def call(self, work: Callable[[], T]) -> T:
        """Do work on the owner's thread when its turn has come, and return what it returns. Raises as ``enter``.

        Where the wait is interrupted, the engine is stopped; the interruption goes on as soon as the work has ended.
        """
        outcome: Outcome[T] = Outcome()
        turn = self._whole(outcome, work)
        try:
            self._join(turn)
            return outcome.result()
        except BaseException:
            if not outcome.known:
                self._give_up(turn)
                if turn.begun:
                    outcome.wait()
            raise

    async def acall(self, work: Callable[[], T]) -> T:
        """``call``, while the event loop goes on. A task that is cancelled again waits no longer for the end."""
        bell = Bell()
        outcome: Outcome[T] = Outcome(bell.ring)
        turn = self._whole(outcome, work)
        try:
            self._join(turn)
            await asyncio.shield(bell.rung)
        except BaseException as error:
            if not outcome.known:
                self._give_up(turn)
                if turn.begun and isinstance(error, asyncio.CancelledError):
                    await bell.until_known(outcome)
            raise
        return outcome.result()

    def enter(self, holder: Holder) -> Turn:
        """Return a holder's turn once it has come.

        Raises what its ``start`` raises, ``EngineError`` where the desk is closed, and ``UsageError`` where the caller
        itself has the desk.
        """
        gate: Outcome[None] = Outcome()
        turn = self._kept(holder, gate)
        try:
            self._join(turn)
            gate.result()
        except BaseException:
            self.leave(turn)
            raise
        return turn

    async def aenter(self, holder: Holder) -> Turn:
        """``enter``, while the event loop goes on."""
        bell = Bell()
        gate: Outcome[None] = Outcome()
        turn = self._kept(holder, gate, bell)
        try:
            self._join(turn)
            await bell.rung
            gate.result()
        except BaseException:
            self.leave(turn)
            raise
        return turn

    def wake(self) -> None:
        """Have the owner's thread look at what is asked for. From any thread; on that one itself, look at once."""
        if self.owner.is_current:
            self._look()
            return
        self.owner.wake()
        if self.owner.rests:  # it came too late to be seen there
            self._look()

    def leave(self, turn: Turn) -> None:
        """Give a turn back, or give up waiting for it. Safe to call twice, at any moment."""
        turn.over = True
        self.owner.wake()

    @property
    def out_of_use(self) -> bool:
        """Whether the session is closed or has failed."""
        return self.seats.out_of_use is not None

    def check(self) -> None:
        """Raise ``EngineError`` where the session is closed or has failed."""
        self.seats.check()

    def _whole(self, outcome: Outcome[T], work: Callable[[], T]) -> Turn:
        def begin(seat: Seat) -> None:
            if self.owner.rests:
                self.owner.refuse(outcome)
            else:
                outcome.settle(lambda: self._checked(work))
            turn.over = True

        turn = Turn(begin)
        return turn

    def _kept(self, holder: Holder, gate: Outcome[None], bell: Bell | None = None) -> Turn:
        found = weakref.ref(holder, self.owner.wake)

        def begin(seat: Seat) -> None:
            if self.owner.rests:
                self.owner.refuse(gate)
            elif (there := found()) is not None:
                gate.settle(lambda: self._checked(lambda: there._start(seat)))
            turn.over = turn.over or (bell is not None and not bell.ring()) or self.owner.rests

        turn = Turn(begin, held_by=found)
        return turn

    def _checked(self, work: Callable[[], T]) -> T:
        self.check()
        return work()

    def _join(self, turn: Turn) -> None:
        self.check()
        self.owner.check()
        held = None if self.parallel else self._turns[0]
        holder = None if held is None or held.over else held.holder
        if holder is not None and holder._caller is not None and _calls_us(holder._caller):
            raise UsageError(
                "Another stream of this model is still open.",
                hint="Leave its with block first, or load the bundle a second time.",
            )
        self._waiting.append(turn)
        self.wake()
        if self.owner.is_current and not turn.begun:
            raise UsageError("The engine's own thread cannot wait for the engine.", hint="Ask from another thread.")

    def _give_up(self, turn: Turn) -> None:
        turn.over = True
        self.cancel(turn)
        self.owner.wake()

    def _look(self) -> float | None:
        """Between two pieces of work: hand free seats on, and evaluate a step of what is asked for.

        Returns after how many seconds to look again, None where only a request or its end can change anything. After
        the owner's last look whoever comes too late looks, one at a time, and is refused.
        """
        if not self._opened:
            return None  # the thread looks before there is anything to see
        if not self.owner.rests:
            return self._seen()
        if not main_thread().is_alive():
            return None  # the interpreter ends: who waits for ever is quieter than who fails
        with self._late:
            return self._seen()

    def _seen(self) -> float | None:
        if self._waiting:
            self._pass_on()
        waiting = bool(self._waiting) and any(not each.over for each in tuple(self._waiting))
        asked: list[tuple[Turn, Ask]] = []
        again: float | None = None
        for turn in self._turns:
            holder = None if turn is None or turn.over else turn.holder
            if turn is None or holder is None or (turn.awaits and not self._shared(turn, *turn.awaits)):
                continue
            wait = _PATIENCE_S - (monotonic() - turn.used) if waiting else None
            unread = wait is not None and wait <= 0
            if (ask := holder._ask(unread)) is not None:
                turn.answers = turn.answers or not is_prompt(ask)
                asked.append((turn, ask))
            elif unread or holder._done:
                turn.over = True
                again = 0.0
            elif wait is not None:
                again = wait if again is None else min(again, wait)
        if asked:
            self._evaluate(together(asked, self.options.chunk) if len(asked) > 1 else asked)
            again = 0.0
        return again

    def _evaluate(self, asked: Sequence[tuple[Turn, Ask]]) -> None:
        """Evaluate one step of several sequences, and tell each what it gave."""
        self._round += 1
        found: Sequence[Logits | BaseException]
        try:
            found = self.seats.evaluate([(turn.seat, ask) for turn, ask in asked if turn.seat is not None])
        except BaseException as error:
            found = [Cancelled("The model is closed.") if self._closing else error] * len(asked)
        for (turn, _), given in zip(asked, found, strict=True):
            turn.served = self._round
            if (holder := turn.holder) is not None:
                holder._tell(given)

    def _pass_on(self) -> None:
        """Let those begin who wait, as far as seats are free. Where the engine is out of use, all of them are told."""
        while self._waiting:
            free = [seat for seat in self.seats if self._is_free(seat)]
            if not free and not self.out_of_use:
                return
            turn = self._waiting.popleft()
            if turn.over:
                continue
            if not self.out_of_use:
                self._place(turn, sorted(free, key=self._last_used))
            turn.begun = True
            turn.touch()
            turn.begin(turn.seat or self.seat)

    def _place(self, turn: Turn, free: Sequence[Seat]) -> None:
        """Give a turn one of the free seats, the longest unused first."""
        turn.seat = free[0]
        if self.parallel:
            prompt = () if (holder := turn.holder) is None else holder._prompt
            turn.seat = choose(free, [seat for seat in self.seats if not self._is_free(seat)], prompt)
            if turn.seat is not free[0] and loses(turn.seat, prompt):
                self._move(turn.seat, free[0])
            turn.awaits = source(turn.seat, prompt, [each for each in self._turns if each is not None])
        with self._lock:
            self._turns[turn.seat.number] = turn

    def _move(self, seat: Seat, other: Seat) -> None:
        """Let another seat hold what a free one holds, with the turn that left it there."""
        with suppress(EngineError):  # which the next step meets again
            other.take(seat, len(seat.cache.tokens))
            if (last := self._turns[seat.number]) is not None:
                last.seat = other
            with self._lock:
                self._turns[other.number] = last

    def _is_free(self, seat: Seat) -> bool:
        turn = self._turns[seat.number]
        return turn is None or turn.has_ended

    def _last_used(self, seat: Seat) -> float:
        turn = self._turns[seat.number]
        return 0.0 if turn is None else turn.used

    def _shared(self, turn: Turn, other: Turn, length: int) -> bool:
        """Copy the beginning of a prompt that another turn has evaluated; say whether there is nothing to wait for."""
        holder = turn.holder
        if holder is None or turn.seat is None or other.seat is None:
            return True
        there = other.seat.shares(holder._prompt)
        if there < length and not (other.answers or other.has_ended):
            return False
        turn.awaits = None
        if (length := min(length, there)) > turn.seat.shares(holder._prompt):
            with suppress(EngineError):  # which the turn's own step meets again
                turn.seat.take(other.seat, length)
        return True

    # From any thread

    def cancel(self, turn: Turn | None) -> None:
        """Stop the engine, if this turn has it."""
        if turn is None or not self.owner.is_here:
            return
        with self._lock:
            if not self.parallel and self._turns[0] is turn:
                self.session.cancel()
                if self.draft is not None:
                    self.draft.cancel()

    def close(self) -> None:
        """Stop what runs and close the session. Requests that wait are refused. Safe to call twice."""
        if not self.owner.is_here:
            return
        self._closing = True
        self.seats.out_of_use = self.seats.out_of_use or "The model is closed."
        if self.parallel:
            self.session.cancel()
        for turn in self._turns:
            if turn is not None and not turn.has_ended and (holder := turn.holder) is not None:
                holder._stop()
        self.owner.wake()
        if self._end.alive:
            _shut_down(self.owner, self.session, self.draft)
            self._end.detach()


def _calls_us(frame: FrameType) -> bool:
    """Whether this frame is among the callers."""
    each: FrameType | None = sys._getframe(1)
    while each is not None and each is not frame:
        each = each.f_back
    return each is frame


def _weakly(method: weakref.WeakMethod[Callable[[], float | None]]) -> Callable[[], float | None]:
    """Return what calls a method of something that it does not keep alive."""

    def call() -> float | None:
        found = method()
        return None if found is None else found()

    return call


def _shut_down(owner: Owner, session: Session, draft: Draft | None) -> None:
    if not owner.is_here:  # a fork of the process has neither the thread nor the right to the engine
        return
    if not owner.stopped:
        sessions = (session,) if draft is None else (session, draft)
        for each in sessions:
            each.cancel()
        owner.stop(lambda: _close(*sessions), _LAST_WORDS_S)


def _close(*sessions: Session | Draft) -> None:
    with ExitStack() as stack:  # each of them, whatever another raises
        for each in sessions:
            stack.callback(each.close)
