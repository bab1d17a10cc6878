"""Where requests queue for an engine: one at a time, in the order in which they came, and none after it failed.

A turn belongs to its request, whichever threads and tasks read it. The owner's thread alone hands it on, where no
signal's handler can come between, and looks again every second while somebody waits. So whoever holds the desk cannot
keep it: a request that ended in whatever way is passed over, one whose stream nobody has any more too, and one that
was not read for a second comes to its end without its reader, who finds the rest ready later.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from threading import RLock
from time import monotonic
from types import FrameType
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.cache import Cache, Step
from edgepack.decoding.draft import Draft
from edgepack.decoding.owner import Bell, Outcome, Owner
from edgepack.decoding.turn import Holder, Turn, nothing
from edgepack.errors import Cancelled, EngineCrashedError, EngineError, EngineTimeoutError, UsageError
from edgepack.runtime import Options, Session, Snapshots

T = TypeVar("T")
Logits = NDArray[np.float32]

_LAST_WORDS_S = 10.0
_PATIENCE_S = 1.0


def _no_more() -> bool:
    return False


class Desk:
    """A session with its owner thread and its cache's bookkeeping, which serves one request at a time.

    ``drafting`` opens a draft model beside it, on the same thread. Both are closed when nobody can reach the desk any
    more, and before the interpreter ends.
    """

    def __init__(
        self, opening: Callable[[], Session], options: Options, drafting: Callable[[], Draft] | None = None
    ) -> None:
        self.options = options
        self.cache = Cache()
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._out_of_use: str | None = None
        # Re-entrant, because a signal handler may cancel while its own thread is inside.
        self._lock = RLock()
        self.owner = Owner("edgepack", _weakly(weakref.WeakMethod(self._look)))
        opened: list[Session] = []
        drafts: list[Draft] = []
        try:
            self.owner.call(lambda: opened.append(opening()))
            self.session = opened[0]
            if drafting is not None:
                self.owner.call(lambda: drafts.append(drafting()))
            self.draft = drafts[0] if drafts else None
            self._end = weakref.finalize(self, _shut_down, self.owner, self.session, self.draft)
        except BaseException:
            self.owner.stop(lambda: _close(*opened, *drafts))  # behind an opening that was interrupted
            raise

    # Turns

    def call(
        self, work: Callable[[], T], before: Callable[[], bool] = _no_more, cancel: Callable[[], None] = nothing
    ) -> T:
        """Do work on the owner's thread when its turn has come, and return what it returns. Raises as ``enter``.

        ``before`` is called again and again before the work, until there is no more to do. Where the wait is
        interrupted, ``cancel`` is called and the engine stopped; the interruption goes on as soon as that has ended.
        """
        outcome: Outcome[T] = Outcome()
        turn = self._whole(outcome, work, before, cancel)
        try:
            self._join(turn)
            return outcome.result()
        except BaseException:
            if not outcome.known:
                self._give_up(turn)
                if turn.begun:
                    outcome.wait()
            raise

    async def acall(
        self, work: Callable[[], T], before: Callable[[], bool] = _no_more, cancel: Callable[[], None] = nothing
    ) -> T:
        """``call``, while the event loop goes on. A task that is cancelled again waits no longer for the end."""
        bell = Bell()
        outcome: Outcome[T] = Outcome(bell.ring)
        turn = self._whole(outcome, work, before, cancel)
        try:
            self._join(turn)
            await asyncio.shield(bell.rung)
        except BaseException as error:
            if not outcome.known:
                self._give_up(turn)
                if turn.begun and isinstance(error, asyncio.CancelledError):
                    await bell.rung
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

    def leave(self, turn: Turn) -> None:
        """Give a turn back, or give up waiting for it. Safe to call twice, at any moment."""
        turn.over = True
        self.owner.wake()

    @property
    def out_of_use(self) -> bool:
        """Whether the session is closed or has failed."""
        return self._out_of_use is not None

    def check(self) -> None:
        """Raise ``EngineError`` where the session is closed or has failed."""
        if self._out_of_use is not None:
            raise EngineError(self._out_of_use, hint="Load the bundle again.")

    def _whole(
        self, outcome: Outcome[T], work: Callable[[], T], before: Callable[[], bool], cancel: Callable[[], None]
    ) -> Turn:
        def go_on() -> None:
            try:
                if turn.over:
                    raise Cancelled("The request was given up.")
                if self.owner.rests:
                    self.owner.refuse(outcome)
                elif before():
                    self.owner.later(go_on)
                    return
                else:
                    outcome.settle(work)
            except BaseException as error:
                outcome.fail(error)
            turn.over = True

        def begin() -> None:
            try:
                self.check()
            except EngineError as error:
                outcome.fail(error)
                turn.over = True
            else:
                go_on()

        turn = Turn(begin, cancel)
        return turn

    def _kept(self, holder: Holder, gate: Outcome[None], bell: Bell | None = None) -> Turn:
        found = weakref.ref(holder, self.owner.wake)

        def begin() -> None:
            if self.owner.rests:
                self.owner.refuse(gate)
            elif (there := found()) is not None:
                gate.settle(lambda: self._checked(there._start))
            turn.over = turn.over or (bell is not None and not bell.ring()) or self.owner.rests

        turn = Turn(begin, holder=found)
        return turn

    def _checked(self, work: Callable[[], T]) -> T:
        self.check()
        return work()

    def _join(self, turn: Turn) -> None:
        self.check()
        self.owner.check()
        held = self._holder
        holder = None if held is None or held.over or held.holder is None else held.holder()
        if holder is not None and holder._caller is not None and _calls_us(holder._caller):
            raise UsageError(
                "Another stream of this model is still open.",
                hint="Leave its with block first, or load the bundle a second time.",
            )
        self._waiting.append(turn)
        if not self.owner.is_current:
            self.owner.wake()
            if self.owner.rests:  # it came too late to be seen there
                self._look()
            return
        self._look()
        if not turn.begun:
            raise UsageError("The engine's own thread cannot wait for the engine.", hint="Ask from another thread.")

    def _give_up(self, turn: Turn) -> None:
        turn.over = True
        turn.cancel()
        self.cancel(turn)
        self.owner.wake()

    def _look(self) -> float | None:
        """Between two pieces of work: hand the desk on, and go on with what nobody reads while others wait.

        Returns after how many seconds to look again, None where only a request or its end can change anything.
        """
        while self._holder is None or self._holder.has_ended or self._out_of_use is not None:
            if not self._pass_on():
                return None
        turn = self._holder
        holder = None if turn.holder is None else turn.holder()
        if holder is None or all(each.over for each in tuple(self._waiting)):
            return None
        unread = monotonic() - turn.used
        if unread < _PATIENCE_S:
            return _PATIENCE_S - unread
        if not holder._go_on():
            turn.over = True
        return 0.0

    def _pass_on(self) -> bool:
        with self._lock:
            self._holder = None
            while self._waiting:
                turn = self._waiting.popleft()
                if not turn.over:
                    break
            else:
                return False
            self._holder = turn
        turn.begun = True
        turn.touch()
        turn.begin()
        return True

    # The engine, on the owner's thread

    def forward(self, tokens: Sequence[int]) -> Logits:
        """Append tokens as one step and return the logits after the last: float32 [n_vocab]."""
        return self.step(self.session.forward, tokens)

    def forward_all(self, tokens: Sequence[int]) -> Logits:
        """Append tokens as one step and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self.step(self.session.forward_all, tokens)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens and return how many the engine kept, which may be fewer."""
        with self._watched():
            if length < len(self.cache.tokens):
                self.cache.cut(self.session.rewind(length))
        return len(self.cache.tokens)

    def guess(self, text: Sequence[int], most: int, go_on: Callable[[], None]) -> list[int]:
        """Return what the draft model guesses: see ``Draft.guess``. Nothing without one."""
        if self.draft is None:
            return []
        with self._watched(lost=False):
            return self.draft.guess(text, most, go_on)

    def snapshot(self, length: int) -> bytes:
        """Return the session's snapshot of its first tokens; nothing where it can make none. The cache stays."""
        if not isinstance(self.session, Snapshots):
            return b""
        with self._watched():
            whole = self.session.snapshot()
        if length == len(self.cache.tokens):
            return whole
        tokens, steps = list(self.cache.tokens), list(self.cache.steps)
        state = b""
        if self.rewind(length) == length:
            with self._watched():
                state = self.session.snapshot()
        self.restore(whole, tokens, steps)
        return state

    def restore(self, state: bytes, tokens: Sequence[int], steps: Sequence[Step]) -> None:
        """Put a snapshot of these tokens into the cache; one that the session refuses leaves the cache empty."""
        self.rewind(0)
        if isinstance(self.session, Snapshots):
            with self._watched(), suppress(ValueError):
                self.session.restore(state)
                self.cache.tokens, self.cache.steps = list(tokens), list(steps)

    def step(self, evaluate: Callable[[Sequence[int]], Logits], tokens: Sequence[int]) -> Logits:
        """Append tokens as one step by a method of the session's, and return what that gives."""
        self.check()
        try:  # no context, which takes as long to enter and leave as all of the bookkeeping
            logits = evaluate(tokens)
        except EngineError as error:
            self._failed(error)
            raise
        self.cache.append(tokens)
        return logits

    @contextmanager
    def _watched(self, lost: bool = True) -> Iterator[None]:
        """Note a failure of the engine; ``lost``: a crash takes the cache with it."""
        self.check()
        try:
            yield
        except EngineError as error:
            self._failed(error, lost)
            raise

    def _failed(self, error: EngineError, lost: bool = True) -> None:
        """Note what a failure means for the next request."""
        if not isinstance(error, Cancelled | EngineCrashedError | EngineTimeoutError):
            self._out_of_use = f"The engine failed earlier: {error.message}"
        elif lost:  # after a crash another process takes over, with nothing in its cache
            self.cache.cut(self.session.length if isinstance(error, Cancelled) else 0)

    # From any thread

    def cancel(self, turn: Turn | None) -> None:
        """Stop the engine, if this turn has it."""
        if turn is None or not self.owner.is_here:
            return
        with self._lock:
            if self._holder is turn:
                self.session.cancel()
                if self.draft is not None:
                    self.draft.cancel()

    def close(self) -> None:
        """Stop what runs and close the session. Requests that wait are refused. Safe to call twice."""
        if not self.owner.is_here:
            return
        self._out_of_use = self._out_of_use or "The model is closed."
        if (turn := self._holder) is not None:
            turn.cancel()
            if turn.holder is not None and (holder := turn.holder()) is not None:
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
