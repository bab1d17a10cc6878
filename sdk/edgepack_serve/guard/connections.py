"""Connections that waste no place: a request's head must come in time, and one that is given up is closed at once."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""Seconds in which the head of a connection's first request has to be there."""

MOST = 512
"""Connections at a time."""


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it in pure Python, by h11, whose reading of requests is the strictest there is."""

    _head: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request. Requests find ``abort`` among their ``state``."""
        super().connection_made(transport)
        self.access_log = False  # with its paths and whatever clients put into them
        self.app_state = {**self.app_state, "abort": transport.abort}
        self._head = self.loop.call_later(HEAD_S, self._too_late)

    def data_received(self, data: bytes) -> None:
        """Take what came; a connection that already had a request is given a fresh while for the next one's head."""
        was = self.cycle
        super().data_received(data)
        if self.cycle is not was:
            if self._head is not None:
                self._head.cancel()
                self._head = None
        elif self._head is None and (was is None or was.response_complete):
            self._head = self.loop.call_later(HEAD_S, self._too_late)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        if self._head is not None:
            self._head.cancel()
        super().connection_lost(exc)

    def _too_late(self) -> None:
        self._head = None
        self.transport.abort()
