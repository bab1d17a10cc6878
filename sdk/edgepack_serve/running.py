"""A server's life on an event loop: models that are to be ready, requests, and an end that is told to each."""

from __future__ import annotations

import asyncio
import signal
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from edgepack.errors import UsageError
from edgepack_serve import systemd
from edgepack_serve.guard import connections, gate
from edgepack_serve.hosting.host import Host
from edgepack_serve.records import log
from edgepack_serve.underway import Underway

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Certificate:
    """The files of a TLS certificate, with its chain, and of its key, both in PEM."""

    chain: Path
    key: Path

    def check(self) -> None:
        """Raise ``UsageError`` where they are no certificate and its key."""
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.chain, self.key, password="")
        except (OSError, ValueError) as error:  # an SSLError is an OSError
            raise UsageError(f"{self.chain} and {self.key} are no certificate and its key: {error}.") from None


class _Uvicorn(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals to ``Server``."""
        yield


class Server:
    """Serves until it is told to stop."""

    def __init__(
        self,
        app: ASGIApp,
        host: Host,
        underway: Underway,
        *,
        certificate: Certificate | None = None,
        grace_s: float = 10.0,
        left: Callable[[], None] = lambda: None,
    ) -> None:
        """``left`` is called where an engine does not stop, which would keep this process from its end."""
        self._host, self._underway, self._grace_s, self._left = host, underway, grace_s, left
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop, self._cut = asyncio.Event(), asyncio.Event()
        config = uvicorn.Config(
            app,
            http=connections.Connection,
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=2,
            limit_concurrency=connections.MOST,
            h11_max_incomplete_event_size=gate.HEAD_BYTES,
            ssl_certfile=None if certificate is None else certificate.chain,
            ssl_keyfile=None if certificate is None else certificate.key,
        )
        self._uvicorn = _Uvicorn(config)

    async def run(self, sockets: Sequence[socket.socket], ready: Callable[[], None], signals: bool = True) -> None:
        """Serve on these sockets; ``ready`` is called once requests are taken. Raises what loading a model raises."""
        self._loop = asyncio.get_running_loop()
        if signals:
            for each in _SIGNALS:
                self._loop.add_signal_handler(each, self.stop)
        try:
            await self._until_stopped(self._load_first())
            if not self._stop.is_set():
                await self._serve(list(sockets), ready)
        finally:
            await self._host.close()

    def stop(self) -> None:
        """Stop: the first time with grace, the second at once. From the loop's own thread."""
        (self._cut if self._stop.is_set() else self._stop).set()

    def stop_from_elsewhere(self) -> None:
        """``stop``, from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self.stop)

    async def _load_first(self) -> None:
        """Load what is pinned, and what is named first: so that a first request finds it ready."""
        names = list(self._host.models)
        for name in dict.fromkeys([*(each for each in names if self._host.models[each].pinned), names[0]]):
            await self._host.load(name)

    async def _serve(self, sockets: list[socket.socket], ready: Callable[[], None]) -> None:
        serving = asyncio.create_task(self._uvicorn.serve(sockets))
        others = [asyncio.create_task(each) for each in (self._host.sweep(), self._watched())]
        try:
            while not self._uvicorn.started and not serving.done():
                await asyncio.sleep(0.01)
            ready()
            systemd.notify("READY=1")
            await self._until_stopped(serving)
            log.info("stopping", extra={"fields": {"requests": len(self._underway), "grace_s": self._grace_s}})
            systemd.notify("STOPPING=1")
            await self._underway.end(self._grace_s, self._cut)
            if len(self._underway):
                log.error("an engine does not stop", extra={"fields": {"requests": len(self._underway)}})
                self._left()
        finally:
            for each in others:
                each.cancel()
            self._uvicorn.should_exit = True
            await serving

    async def _until_stopped(self, work: asyncio.Future[None] | Coroutine[Any, Any, None]) -> None:
        """Wait for work to end, or for the word to stop, which ends it no sooner."""
        working = asyncio.ensure_future(work)
        stopped = asyncio.create_task(self._stop.wait())
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if working.done():
            working.result()

    async def _watched(self) -> None:
        """Tell systemd that the loop runs and no engine is stuck."""
        if (seconds := systemd.watchdog_s()) is None:
            return
        while True:
            if not self._underway.stuck:
                systemd.notify("WATCHDOG=1")
            await asyncio.sleep(seconds / 2)
