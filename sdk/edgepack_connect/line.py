"""The thread that sockets live on: an event loop, whose work any thread and any other loop may wait for.

So one client serves both kinds of callers, a stream can be cancelled from any thread, and every wait has an end.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from threading import Thread, current_thread
from typing import Any, TypeVar

from edgepack.decoding.owner import Bell, Outcome
from edgepack.errors import EngineError, UsageError

T = TypeVar("T")
Work = Callable[[], Coroutine[Any, Any, T]]


class Line:
    """An event loop on a thread of its own. It does not outlive the interpreter, nor a fork."""

    def __init__(self) -> None:
        self._process = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self._thread = Thread(target=self._run, name="edgepack connection", daemon=True)
        self._thread.start()

    def call(self, work: Work[T]) -> T:
        """Do work on the loop and return what it returns, or raise what it raises. Ctrl-C ends the work too."""
        outcome, cancel = self._submit(work)
        try:
            return outcome.result()
        except BaseException:
            if not outcome.known:
                cancel()
                outcome.wait()
            raise

    async def acall(self, work: Work[T]) -> T:
        """``call`` for another event loop; a cancelled task ends the work too."""
        bell = Bell()
        outcome, cancel = self._submit(work, bell.ring)
        try:
            await bell.rung
        except BaseException:
            if not outcome.known:
                cancel()
            raise
        return outcome.result()

    def soon(self, work: Callable[[], object]) -> None:
        """Do something on the loop, from any thread; nothing where it has ended."""
        if os.getpid() == self._process:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(work)

    def close(self, last: Work[None]) -> None:
        """End all work, do ``last``, and end the thread. Safe to call twice."""
        if self._closed or os.getpid() != self._process:
            return
        self._closed = True

        async def ending() -> None:
            for task in list(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            with suppress(Exception):
                await last()
            self._loop.stop()

        self.soon(lambda: asyncio.ensure_future(ending(), loop=self._loop))
        if current_thread() is not self._thread:  # on which a forgotten model may be collected
            self._thread.join()

    def _submit(self, work: Work[T], told: Callable[[], object] | None = None) -> tuple[Outcome[T], Callable[[], None]]:
        if os.getpid() != self._process:
            raise UsageError("A connection does not survive a fork.", hint="Connect again in the child.")
        if self._closed:
            raise EngineError("The connection is closed.", hint="Connect again.")
        outcome: Outcome[T] = Outcome(told)
        tasks: list[asyncio.Task[T]] = []

        def start() -> None:
            task = self._loop.create_task(work())
            tasks.append(task)
            self._tasks.add(task)
            task.add_done_callback(ended)

        def ended(task: asyncio.Task[T]) -> None:
            self._tasks.discard(task)
            outcome.settle(lambda: _result(task))

        def cancel() -> None:
            self.soon(lambda: tasks[0].cancel() if tasks else None)

        try:
            self._loop.call_soon_threadsafe(start)
        except RuntimeError:
            raise EngineError("The connection is closed.", hint="Connect again.") from None
        return outcome, cancel

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            while self._tasks:  # those that began as it was closed
                for task in self._tasks:
                    task.cancel()
                self._loop.run_until_complete(asyncio.wait(self._tasks))
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.close()


def _result(task: asyncio.Task[T]) -> T:
    if task.cancelled():
        raise EngineError("The connection was closed meanwhile.", hint="Connect again.")
    return task.result()
