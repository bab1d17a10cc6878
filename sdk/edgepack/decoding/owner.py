"""The thread that an engine lives on: it opens the session, runs it and closes it, and no other thread ever calls it.

So an engine that belongs to a thread is served from everywhere, an event loop is never blocked, and a Ctrl-C or a
cancelled task reaches the caller at once, who then stops the engine.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from queue import SimpleQueue
from threading import Thread, current_thread, main_thread
from typing import TypeVar

from edgepack.errors import EngineError

T = TypeVar("T")

_LOOK_S = 0.25


class Owner:
    """A thread that does one piece of work after the other, in the order in which they come.

    Whoever uses it stops it at exit, so that a program which forgets to close its model still ends.
    """

    def __init__(self, name: str) -> None:
        self._process = os.getpid()
        try:
            self._thread = _idle.pop()
        except IndexError:
            self._thread = _Worker()
        self._thread.name = name
        self._stopped = False

    @property
    def is_here(self) -> bool:
        """Whether this process has the thread; a fork of the process that made it has not."""
        return os.getpid() == self._process

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Put work into the queue. Raises ``EngineError`` after ``stop`` and in a fork, which has no threads."""
        if not self.is_here:
            raise EngineError("A model does not survive a fork.", hint="Load it in the process that uses it.")
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        if not self._stopped:
            self._thread.jobs.put(job)
        elif main_thread().is_alive():
            raise EngineError("The model is closed.", hint="Load the bundle again.")
        # Else the interpreter ends, and a thread that waits for ever is quieter than one that fails.
        return future

    def call(self, work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
        """Do work on the thread and return what it returns, or raise what it raises.

        Where the wait is interrupted, by Ctrl-C for example, ``interrupt`` is called, and the interruption goes on as
        soon as the work has ended.
        """
        if current_thread() is self._thread:
            return work()
        future = self.submit(work)
        try:
            return outcome_of(future)
        except BaseException:
            if not future.done():
                interrupt()
                wait_for([future])
            raise

    async def acall(self, work: Callable[[], T], interrupt: Callable[[], None] = lambda: None) -> T:
        """Do work on the thread while the event loop goes on; a cancelled task calls ``interrupt``."""
        future = self.submit(work)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            interrupt()
            raise

    def stop(self, timeout_s: float | None = None) -> None:
        """Give the thread back after the work in its queue; wait for that at most so long. Safe to call twice."""
        if self._stopped or not self.is_here:
            return
        thread = self._thread
        given_back = self.submit(lambda: _idle.append(thread))
        self._stopped = True
        if timeout_s is not None and current_thread() is not thread:
            wait_for([given_back], timeout_s)


def outcome_of(future: Future[T]) -> T:
    """Return what a future returns, or raise what it raises, and notice every Ctrl-C on the way.

    A signal that comes after the interpreter's last look for one and before the wait begins does not end the wait, so
    that it is interrupted to look again: on a busy machine that moment is long.
    """
    while True:
        try:
            return future.result(_LOOK_S)
        except TimeoutError:
            if future.done():  # the work's own, or it ended this moment
                return future.result()


class _Worker(Thread):
    """A thread that serves one owner after the other and never ends.

    An engine may keep something for each thread that ever called it, which it frees when that thread ends, with the
    interpreter's help, or not at all: mlx aborts the process where the interpreter ends at the same moment, and each
    new thread costs it one more of its own. A daemon that waits is no obstacle to the end of a program.
    """

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.jobs: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.start()

    def run(self) -> None:
        while True:
            job = self.jobs.get()
            job()
            del job  # the last job must not keep a model alive while the thread waits for the next


_idle: list[_Worker] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_idle.clear)  # a fork has the list, but not the threads
