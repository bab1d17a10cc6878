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
from threading import Thread, current_thread
from typing import TypeVar

from edgepack.errors import EngineError

T = TypeVar("T")
_Jobs = SimpleQueue[Callable[[], None] | None]


class Owner:
    """A thread that does one piece of work after the other, in the order in which they come.

    It is a daemon, so that a program which forgets to close its model still ends: whoever uses it stops it at exit.
    """

    def __init__(self, name: str) -> None:
        self._jobs: _Jobs = SimpleQueue()
        self._process = os.getpid()
        self._thread = Thread(target=_serve, args=(self._jobs,), name=name, daemon=True)
        self._thread.start()

    @property
    def is_here(self) -> bool:
        """Whether this process has the thread; a fork of the process that made it has not."""
        return os.getpid() == self._process

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Put work into the queue. Raises ``EngineError`` in a fork of the process, which threads do not follow."""
        if not self.is_here:
            raise EngineError("A model does not survive a fork.", hint="Load it in the process that uses it.")
        future: Future[T] = Future()

        def job() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(work())
                except BaseException as error:
                    future.set_exception(error)

        self._jobs.put(job)
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
            return future.result()
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
        """End the thread after the work in its queue; wait for that at most so long. Safe to call twice."""
        self._jobs.put(None)
        if timeout_s is not None and current_thread() is not self._thread and self.is_here:
            self._thread.join(timeout_s)


def _serve(jobs: _Jobs) -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # the last job must not keep a model alive while the thread waits for the next
