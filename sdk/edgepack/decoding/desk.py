"""Where requests queue for an engine: one at a time, in the order in which they came, and none after it failed."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import RLock, get_ident

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.cache import Cache
from edgepack.decoding.owner import Owner, outcome_of
from edgepack.errors import Cancelled, EngineCrashedError, EngineError, EngineTimeoutError, UsageError
from edgepack.runtime import Options, Session, Snapshots

_LAST_WORDS_S = 10.0


@dataclass(eq=False, slots=True)
class Turn:
    """A request's place at the desk: the thread and the task that made it, ``granted`` when its turn has come, and
    what ends it when the desk closes."""

    thread: int
    task: object | None
    granted: Future[None]
    end: Callable[[], None] = lambda: None


class Desk:
    """A session with its owner thread and its cache's bookkeeping, which serves one request at a time.

    It closes the session when nobody can reach it any more, and before the interpreter ends.
    """

    def __init__(self, opening: Callable[[], Session], options: Options) -> None:
        self.owner = Owner("edgepack")
        try:
            self.session = self.owner.call(opening)
        except BaseException:
            self.owner.stop()
            raise
        self.options = options
        self.cache = Cache()
        self._holder: Turn | None = None
        self._waiting: deque[Turn] = deque()
        self._out_of_use: str | None = None
        # Re-entrant, because a signal handler that cancels may interrupt the code that releases.
        self._lock = RLock()
        self._end = weakref.finalize(self, _shut_down, self.owner, self.session)

    # Turns

    def enter(self) -> Turn:
        """Return this caller's turn once it has come. Raises ``UsageError`` where the caller itself holds the desk."""
        turn = self._queue(lambda holder: holder.thread == get_ident())
        try:
            outcome_of(turn.granted)
        except BaseException:
            self.leave(turn)
            raise
        return turn

    async def aenter(self) -> Turn:
        """Return this task's turn once it has come, while the event loop goes on."""
        task = asyncio.current_task()
        turn = self._queue(lambda holder: holder.task is task or (holder.task is None and holder.thread == get_ident()))
        try:
            await asyncio.wrap_future(turn.granted)
        except BaseException:
            self.leave(turn)
            raise
        return turn

    def leave(self, turn: Turn) -> None:
        """Give a turn back, or give up waiting for it. Safe to call twice."""
        with self._lock:
            if turn in self._waiting:
                self._waiting.remove(turn)
            if self._holder is turn:
                self._holder = None
                while self._waiting and self._holder is None:
                    next_one = self._waiting.popleft()
                    if next_one.granted.set_running_or_notify_cancel():
                        self._holder = next_one
                        next_one.granted.set_result(None)

    @contextmanager
    def turn(self) -> Iterator[Turn]:
        """Hold the desk for a ``with`` block. Raises as ``enter``."""
        turn = self.enter()
        try:
            yield turn
        finally:
            self.leave(turn)

    def check(self) -> None:
        """Raise ``EngineError`` where the session is closed or has failed."""
        if self._out_of_use is not None:
            raise EngineError(self._out_of_use, hint="Load the bundle again.")

    def _queue(self, waits_for_itself: Callable[[Turn], bool]) -> Turn:
        with self._lock:
            self.check()
            turn = Turn(get_ident(), _task(), Future())
            if self._holder is None:
                self._holder = turn
                turn.granted.set_result(None)
            elif waits_for_itself(self._holder):
                raise UsageError(
                    "Another stream of this model is still open.",
                    hint="Leave its with block first, or load the bundle a second time.",
                )
            else:
                self._waiting.append(turn)
            return turn

    # The engine, on the owner's thread

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens as one step and return the logits after the last: float32 [n_vocab]."""
        with self._watched():
            logits = self.session.forward(tokens)
        self.cache.append(tokens)
        return logits

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens as one step and return the logits after each: float32 [n_tokens, n_vocab]."""
        with self._watched():
            logits = self.session.forward_all(tokens)
        self.cache.append(tokens)
        return logits

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        with self._watched():
            if length < len(self.cache.tokens):
                self.session.rewind(length)
                self.cache.cut(length)

    def snapshot(self) -> bytes:
        """Return the session's snapshot of its cache; nothing where it can make none."""
        with self._watched():
            return self.session.snapshot() if isinstance(self.session, Snapshots) else b""

    def restore(self, state: bytes, tokens: Sequence[int], steps: Sequence[int]) -> None:
        """Put a snapshot of these tokens into the cache; one that the session refuses leaves the cache empty."""
        self.rewind(0)
        if isinstance(self.session, Snapshots):
            with self._watched(), suppress(ValueError):
                self.session.restore(state)
                self.cache.tokens, self.cache.steps = list(tokens), list(steps)

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Note what a failure of the engine means for the next request."""
        self.check()
        try:
            yield
        except Cancelled:
            raise
        except (EngineCrashedError, EngineTimeoutError):
            self.cache.cut(0)  # another process takes over, with nothing in its cache
            raise
        except EngineError as error:
            self._out_of_use = f"The engine failed earlier: {error.message}"
            raise

    # From any thread

    def cancel(self, turn: Turn | None) -> None:
        """Stop the engine, if this turn has it."""
        with self._lock:
            if turn is not None and self._holder is turn:
                self.session.cancel()

    def close(self) -> None:
        """Stop what runs and close the session. Requests that wait are refused. Safe to call twice."""
        with self._lock:
            self._out_of_use = self._out_of_use or "The model is closed."
            waiting, self._waiting = self._waiting, deque()
            holder = self._holder
        if holder is not None:
            holder.end()
        for turn in waiting:
            if turn.granted.set_running_or_notify_cancel():
                turn.granted.set_exception(EngineError("The model is closed.", hint="Load the bundle again."))
        if self._end.detach():
            _shut_down(self.owner, self.session)


def _task() -> object | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _shut_down(owner: Owner, session: Session) -> None:
    if not owner.is_here:  # a fork of the process has neither the thread nor the right to the engine
        return
    session.cancel()
    owner.submit(session.close)
    owner.stop(_LAST_WORDS_S)
