"""The requests that are being answered: each has its time, and all end when the server does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from edgepack.errors import EdgepackError
from edgepack_serve.refusals import RefusedError

_STUCK_S = 30.0


class Underway:
    """Counts requests in and out. Used on one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.stopping = False
        self._deadlines: set[asyncio.Timeout] = set()
        self._ended = asyncio.Event()

    def __len__(self) -> int:
        return len(self._deadlines)

    @asynccontextmanager
    async def counted(self) -> AsyncIterator[None]:
        """Hold a request to its time. Raises ``RefusedError`` when that is over, and where the server stops."""
        if self.stopping:
            raise _stops("is about to stop")
        deadline = asyncio.timeout(self.timeout_s)
        self._deadlines.add(deadline)
        try:
            async with deadline:
                yield
        except TimeoutError as error:
            if isinstance(error, EdgepackError):
                raise
            if self.stopping:
                raise _stops("stopped before the answer was whole") from None
            raise RefusedError(504, f"The answer took longer than {self.timeout_s:g} s.", code="timeout") from None
        finally:
            self._deadlines.discard(deadline)
            self._ended.set()

    @property
    def stuck(self) -> bool:
        """Whether a request should have ended a while ago: its engine does not stop."""
        now = asyncio.get_running_loop().time()
        return any((when := each.when()) is not None and when + _STUCK_S < now for each in self._deadlines)

    async def end(self, grace_s: float, cut: asyncio.Event) -> None:
        """Take no more requests, wait for those that run, and cut what is left after a while or when ``cut`` is set."""
        self.stopping = True
        waiting = {asyncio.create_task(self._all_ended()), asyncio.create_task(cut.wait())}
        await asyncio.wait(waiting, timeout=grace_s, return_when=asyncio.FIRST_COMPLETED)
        for task in waiting:
            task.cancel()
        now = asyncio.get_running_loop().time()
        for deadline in self._deadlines:
            deadline.reschedule(now)
        try:
            async with asyncio.timeout(5):  # an engine that does not stop is left behind
                await self._all_ended()
        except TimeoutError:
            pass

    async def _all_ended(self) -> None:
        while self._deadlines:
            self._ended.clear()
            await self._ended.wait()


def _stops(what: str) -> RefusedError:
    return RefusedError(
        503, f"The server {what}.", hint="Ask again in a while.", code="server_stopping", headers={"Retry-After": "5"}
    )
