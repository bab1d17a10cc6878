"""Connections that waste no place: a request's head must come in time, what is written must be taken, and a client that
is gone or given up is let go at once."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_S = 10.0
"""Seconds in which the head of a connection's first request has to be there."""

TAKEN_S = 30.0
"""Seconds in which a client has to take something of what is written, also of an answer that is whole."""

MOST = 512
"""Connections at a time."""


class Connection(H11Protocol):
    """HTTP/1.1 as uvicorn speaks it in pure Python, by h11, whose reading of requests is the strictest there is."""

    _head: asyncio.TimerHandle | None = None
    _taken: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request. Requests find ``abort`` among their ``state``."""
        super().connection_made(transport)
        # Whatever is not taken at once is heard of. Not 0: TLS would take an empty buffer for one that is full.
        transport.set_write_buffer_limits(high=1, low=0)
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

    def eof_received(self) -> None:
        """Let a client go that says no more and waits for an answer; one that has it whole may take the rest."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()

    def pause_writing(self) -> None:
        """Wait until the client takes something."""
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        """Go on: all was taken."""
        super().resume_writing()
        if self._taken is not None:
            self._taken.cancel()
            self._taken = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        for each in (self._head, self._taken):
            if each is not None:
                each.cancel()
        super().connection_lost(exc)

    def _watch(self, left: int | None = None) -> None:
        """Give the connection up where as much is left to take as a while ago."""
        now = self.transport.get_write_buffer_size()
        if now == left:
            self.transport.abort()
        else:
            self._taken = self.loop.call_later(TAKEN_S, self._watch, now)

    def _too_late(self) -> None:
        self._head = None
        self.transport.abort()
