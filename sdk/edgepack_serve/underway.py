"""The requests that are being answered: each has its time and its client, and all end when the server does."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any

from starlette.types import Receive

from edgepack_serve.guard.bodies import GoneError
from edgepack_serve.refusals import RefusedError

_ENDS_S, _LAST_S, _STUCK_S = 2.0, 5.0, 30.0
"""How long an engine may take to stop: until its client is answered without it, until the server ends without it, and
until it is said to be stuck."""


@dataclass(frozen=True, slots=True)
class _Work:
    until: float
    cut: asyncio.Future[None]


class Underway:
    """Counts requests in and out. Used on one event loop."""

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.stopping = False
        self._works: dict[asyncio.Task[None], _Work] = {}

    def __len__(self) -> int:
        return len(self._works)

    @property
    def stuck(self) -> bool:
        """Whether a request should have ended a while ago: its engine does not stop."""
        return any(each.until + _STUCK_S < _now() for each in self._works.values())

    async def do(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do the work of a request, and cancel it where its client goes, its time is over or the server stops.

        Raises ``GoneError``, ``RefusedError``, and whatever the work raises. What does not end when it is cancelled is
        left behind, and counted on.
        """
        if self.stopping:
            work.close()
            raise _stops("is about to stop")
        working, gone = asyncio.create_task(work), asyncio.create_task(_gone(receive))
        cut = asyncio.get_running_loop().create_future()
        self._works[working] = _Work(_now() + self.timeout_s, cut)
        working.add_done_callback(self._forget)
        try:
            await asyncio.wait({working, gone, cut}, timeout=self.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            if gone.done():
                raise GoneError
            if cut.done():
                raise _stops("stopped before the answer was whole")
            raise RefusedError(504, f"The answer took longer than {self.timeout_s:g} s.", code="timeout")
        finally:
            gone.cancel()
            if working.cancel():
                await asyncio.wait({working}, timeout=_ENDS_S)

    async def end(self, grace_s: float, at_once: asyncio.Event) -> None:
        """Take no more requests, wait for those that run, and cut what is left after a while, or ``at_once``."""
        self.stopping = True
        hurry = asyncio.create_task(at_once.wait())
        ended = asyncio.create_task(self._ended(grace_s))
        await asyncio.wait({hurry, ended}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        ended.cancel()
        for each in self._works.values():
            if not each.cut.done():
                each.cut.set_result(None)
        await self._ended(_LAST_S)

    async def _ended(self, within_s: float) -> None:
        if self._works:
            await asyncio.wait(tuple(self._works), timeout=within_s)

    def _forget(self, working: asyncio.Task[None]) -> None:
        del self._works[working]
        if not working.cancelled():
            working.exception()  # of what was left behind, nobody asks for it


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _now() -> float:
    return asyncio.get_running_loop().time()


def _stops(what: str) -> RefusedError:
    return RefusedError(
        503, f"The server {what}.", hint="Ask again in a while.", code="server_stopping", headers={"Retry-After": "5"}
    )
