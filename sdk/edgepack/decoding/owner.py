"""The thread that an engine lives on: it opens the session, runs it and closes it, and no other thread ever calls it.

So an engine that belongs to a thread is served from everywhere, an event loop is never blocked, and a Ctrl-C or a
cancelled task reaches the caller at once, who then stops the engine. The handlers of signals run in the main thread
alone: what must not be left half done is done on the owner's.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from threading import Lock, Thread, current_thread, main_thread
from time import monotonic
from typing import Generic, TypeVar

from edgepack import threads
from edgepack.errors import EngineError

T = TypeVar("T")

_LOOK_S = 0.25
_STACK = 8 << 20  # bytes; an engine needs more than a program may set for its own threads, or musl gives any


class Outcome(Generic[T]):
    """What work on another thread comes to. One thread at a time may wait for it.

    It is made of one lock of the interpreter's own. A condition of ``threading``, which futures and events are made of,
    stays locked for ever where the handler of a signal raises as it is about to be released.
    """

    def __init__(self, told: Callable[[], object] | None = None) -> None:
        """``told`` is called on the thread of the work once the outcome is known."""
        self.known = False
        self._told = told
        self._value: T | None = None
        self._error: BaseException | None = None
        self._gate = Lock()
        self._gate.acquire()

    def settle(self, work: Callable[[], T]) -> None:
        """Do the work. Never raises."""
        try:
            self._value = work()
        except BaseException as error:
            self._error = error
        self._open()

    def fail(self, error: BaseException) -> None:
        """Let it be an error, where it is not known yet."""
        if not self.known:
            self._error = error
            self._open()

    def _open(self) -> None:
        self.known = True
        self._gate.release()
        if self._told is not None:
            self._told()

    def wait(self, timeout_s: float = float("inf")) -> None:
        """Wait until it is known, or so long; notice every Ctrl-C on the way.

        A signal that comes after the interpreter's last look for one and before the wait begins does not end the wait,
        so that it is interrupted to look again: on a busy machine that moment is long.
        """
        end = monotonic() + timeout_s
        while not self.known and (left := end - monotonic()) > 0:
            self._gate.acquire(timeout=min(left, _LOOK_S))

    def result(self) -> T:
        """Wait, and return what the work returned, or raise what it raised."""
        self.wait()
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # its traceback has this frame, which would keep all that is in it alive
        return self._value  # type: ignore[return-value]  # a T, once there is no error


class Owner:
    """A thread that does one piece of work after the other, in the order in which they come.

    ``between`` is called on it after each, never raises, and says after how many seconds without work it wants to be
    called again; None: not before the next. Whoever uses an owner stops it at exit, so that a program which forgets
    to close its model still ends.
    """

    def __init__(self, name: str, between: Callable[[], float | None] | None = None) -> None:
        self._process = os.getpid()
        try:
            self._thread = _idle.pop()
        except IndexError:
            self._thread = _Worker()
        self._thread.name = name
        # Its own, so that what comes after its end wakes no thread: one that wakes as all ends is torn down.
        self._jobs: SimpleQueue[Callable[[], object]] = SimpleQueue()
        self._between = between or _nothing
        self._thread.owners.put((self._jobs, self._between))
        # Has ``between`` called soon. From anywhere: as no code of Python runs, no signal is handled in the middle. It
        # passes over what the end of a weak reference gives it.
        self.wake: Callable[..., None] = partial(self._jobs.put, _nothing)
        self.stopped = False
        self.rests = False  # nothing that is put into the queue will be done any more

    @property
    def is_here(self) -> bool:
        """Whether this process has the thread; a fork of the process that made it has not."""
        return os.getpid() == self._process

    @property
    def is_current(self) -> bool:
        """Whether the caller runs on it."""
        return current_thread() is self._thread

    def check(self) -> None:
        """Raise ``EngineError`` in a fork of its process, which has no threads."""
        if not self.is_here:
            raise EngineError("A model does not survive a fork.", hint="Load it in the process that uses it.")

    def submit(self, work: Callable[[], T], told: Callable[[], object] | None = None) -> Outcome[T]:
        """Put work into the queue; after ``stop`` its outcome is an ``EngineError``. Raises as ``check``."""
        self.check()
        outcome: Outcome[T] = Outcome(told)
        if self.stopped:
            self.refuse(outcome)
            return outcome
        self._jobs.put(lambda: self.refuse(outcome) if self.rests else outcome.settle(work))
        if self.rests:  # it came too late
            self.refuse(outcome)
        return outcome

    def refuse(self, outcome: Outcome[T]) -> None:
        """Let work that comes after the end fail.

        Where the interpreter ends too, nothing is said: a thread that waits for ever is quieter than one that fails.
        """
        if main_thread().is_alive():
            outcome.fail(EngineError("The model is closed.", hint="Load the bundle again."))

    def call(self, work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
        """Do work on the thread and return what it returns, or raise what it raises.

        Where the wait is interrupted, by Ctrl-C for example, ``interrupt`` is called, and the interruption goes on as
        soon as the work has ended.
        """
        if self.is_current:
            return work()
        outcome = self.submit(work)
        try:
            return outcome.result()
        except BaseException:
            if not outcome.known:
                interrupt()
                outcome.wait()
            raise

    async def acall(self, work: Callable[[], T]) -> T:
        """Do work on the thread while the event loop goes on; a task that is cancelled leaves it there."""
        bell = Bell()
        outcome = self.submit(work, bell.ring)
        await bell.rung
        return outcome.result()

    def stop(self, last: Callable[[], object] = lambda: None, timeout_s: float | None = None) -> None:
        """Do ``last`` after the work in the queue and give the thread back; wait for that at most so long.

        Safe to call twice, of which only the first does anything.
        """
        if self.stopped or not self.is_here:
            return
        self.stopped = True
        given_back: Outcome[None] = Outcome()

        def end() -> None:
            try:
                last()
            finally:
                self.rests = True
                with suppress(Empty):  # what came meanwhile
                    while True:
                        self._jobs.get_nowait()()
                self._between()
                self._thread.rest()

        self._jobs.put(lambda: given_back.settle(end))
        if timeout_s is not None and not self.is_current:
            given_back.wait(timeout_s)


class Bell:
    """What a task of an event loop waits for, and any thread rings. Made on the loop's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.rung: asyncio.Future[None] = self._loop.create_future()

    def ring(self) -> bool:
        """Wake the task; say whether its loop can still be told."""
        try:
            self._loop.call_soon_threadsafe(self._end)
        except RuntimeError:  # it is closed
            return False
        return True

    async def until_known(self, outcome: Outcome[T]) -> None:
        """Wait until an outcome is known that tells by this bell, in a task that was cancelled.

        The ring itself may be lost: where a signal's handler raises as the loop is about to tell the task, the loop
        ends, and cancels its tasks.
        """
        while not outcome.known:
            await asyncio.wait([self.rung], timeout=_LOOK_S)

    def _end(self) -> None:
        if not self.rung.done():
            self.rung.set_result(None)


class _Worker(Thread):
    """A thread that serves one owner after the other and never ends.

    An engine may keep something for each thread that ever called it, which it frees when that thread ends, with the
    interpreter's help, or not at all: mlx aborts the process where the interpreter ends at the same moment, and each
    new thread costs it one more of its own. A daemon that waits is no obstacle to the end of a program.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.owners: SimpleQueue[tuple[SimpleQueue[Callable[[], object]], Callable[[], float | None]]] = SimpleQueue()
        self._rests = False
        try:
            threads.start(self, _STACK)
        except RuntimeError as error:
            raise EngineError(
                f"No thread can be started for the engine: {error}.",
                hint="Free memory, or raise this process's limits of memory and threads.",
            ) from None

    def run(self) -> None:
        while True:
            self._serve(*self.owners.get())

    def rest(self) -> None:
        """Wait for the next owner."""
        self._rests = True
        _idle.append(self)

    def _serve(self, jobs: SimpleQueue[Callable[[], object]], between: Callable[[], float | None]) -> None:
        self._rests = False
        while not self._rests:
            try:
                job = jobs.get(timeout=between())
            except Empty:
                continue
            job()
            del job  # the last job must not keep a model alive while the thread waits for the next


def _nothing() -> None:
    return None


_idle: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a fork has the list, but not the threads
