"""Connections of urllib3 that end: each wait, each head of an answer and each MiB has its time.

urllib3 bounds the wait for the next byte alone, so that a server that sends one byte a minute would hold a process for
as long as it likes. Certificates are checked against the system's, proxies are those of the environment.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPException, InvalidURL
from threading import Event, Timer
from urllib.request import getproxies, proxy_bypass

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import (
    ConnectTimeoutError,
    HTTPError,
    LocationValueError,
    NameResolutionError,
    NewConnectionError,
    ProxyError,
    SSLError,
)
from urllib3.exceptions import TimeoutError as Silence
from urllib3.util import Timeout, make_headers, parse_url

from edgepack_ship.registry.address import is_loopback

FAULTS = (HTTPError, HTTPException, OSError, ValueError)
"""What an exchange may raise, whatever the server does; ``ValueError`` is a socket that was closed meanwhile."""
UNASKABLE = (LocationValueError, InvalidURL, UnicodeError)
"""Those of them that an address raises which cannot be asked at all."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How many seconds a server may take: to be reached, to say anything, and for each MiB. Twice the second for the
    whole head of an answer; ``sealing`` takes its place once a whole upload was sent."""

    reach: float = 20
    say: float = 30
    block: float = 300
    sealing: float = 600

    def timeout(self, sealing: bool) -> Timeout:
        """Return it as urllib3 takes it."""
        return Timeout(connect=self.reach, read=self.sealing if sealing else self.say)


@contextmanager
def ended_after(seconds: float, end: Callable[[], object]) -> Iterator[None]:
    """Call ``end`` from another thread if the body takes longer, and raise ``TimeoutError`` then."""
    over = Event()

    def ending() -> None:
        over.set()
        with suppress(*FAULTS, RuntimeError):  # it ended by itself meanwhile
            end()

    timer = Timer(seconds, ending)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        if over.is_set():  # what was read is half of it, and looks whole where a line or a body may end anywhere
            raise TimeoutError


class _Plain(HTTPConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in what it takes the place of
        with _head(self):
            return super().getresponse()


class _Secure(HTTPSConnection):
    def getresponse(self) -> urllib3.HTTPResponse:  # type: ignore[override]  # as in what it takes the place of
        with _head(self):
            return super().getresponse()


class _PlainPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Plain


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _Secure


@contextmanager
def _head(connection: HTTPConnection) -> Iterator[None]:
    """Bound the time for an answer's head, which has as many lines as a server likes, each with a wait of its own."""
    plug, seconds = connection.sock, connection.timeout
    if not isinstance(plug, socket.socket) or not isinstance(seconds, int | float):  # TLS within a proxy's TLS
        yield
        return
    with ended_after(2 * seconds, lambda: socket.socket.shutdown(plug, socket.SHUT_RDWR)):
        yield


def pools(scheme: str, host: str) -> urllib3.PoolManager:
    """Return what makes connections to a host, by the proxy that the environment names for it."""
    proxy = None if is_loopback(host) or proxy_bypass(host) else getproxies().get(scheme)
    if proxy is None:
        made = urllib3.PoolManager(retries=False)
    else:
        who = parse_url(proxy).auth
        headers = make_headers(proxy_basic_auth=who) if who else None
        made = urllib3.ProxyManager(proxy, retries=False, proxy_headers=headers)
    made.pool_classes_by_scheme = {"http": _PlainPool, "https": _SecurePool}
    return made


def unreached(error: Exception) -> bool:
    """Say whether no server took the request at all."""
    return isinstance(error, NewConnectionError | ConnectTimeoutError | ProxyError)


def reason(error: Exception) -> str:
    """Return what befell an exchange, in words of our own: those of the library hold addresses, and these secrets."""
    cause = error.args[-1] if isinstance(error, SSLError) and error.args else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"has a certificate that this machine does not trust: {cause.verify_message}"
    if isinstance(error, NameResolutionError):
        return "is not known to this network"
    if isinstance(error, ProxyError):
        return "is not reached by the proxy that the environment names"
    if isinstance(error, SSLError):
        return "speaks no TLS that this machine takes"
    if unreached(error):
        return "cannot be reached"
    return "does not answer in time" if isinstance(error, Silence | TimeoutError) else "cut the connection"
