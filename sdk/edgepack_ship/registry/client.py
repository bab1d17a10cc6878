"""A client for servers that may be slow, cut off, wrong or hostile.

One client speaks to one server on a user's behalf. It follows few redirects, and none to where anybody could listen;
tells who the user is to that server alone, and only where none can listen; reads no more than it was told to; and
tries again what was cut, a few times, after waits that grow.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TypeVar
from urllib.parse import urljoin, urlsplit

import urllib3

from edgepack.errors import EdgepackError, TransferError, UsageError, brief
from edgepack_ship.reading import BLOCK
from edgepack_ship.registry import authorization, connection
from edgepack_ship.registry.address import is_loopback
from edgepack_ship.registry.authorization import MAX_TOKEN, Challenge, Credentials
from edgepack_ship.registry.connection import FAULTS, UNASKABLE, Patience, ended_after
from edgepack_ship.registry.credentials import PASSWORD, USER, find

TRIES = 6
PROGRESS = 4096
"""Bytes of a file that make a try one that got on: the tries are counted anew."""
LONGEST_WAIT = 20.0
_REDIRECTS, _REDIRECTED = 5, (301, 302, 303, 307, 308)
_BUSY = (408, 425, 429, 500, 502, 503, 504)
_MAX_REFUSAL = 1 << 16
_POOLS = 16
_CODE = re.compile(rb'"code"\s*:\s*"([A-Z_]{1,40})"')

T = TypeVar("T")
Origin = tuple[str, str, int | None]
"""A scheme, a host and a port."""


class Cut(Exception):  # noqa: N818 - no error yet: it is tried again
    """An exchange that came to nothing, through no fault of what was asked."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Tries:
    """What is left of the patience for one work."""

    def __init__(self, wait: Callable[[float], object]) -> None:
        self._wait, self._failed = wait, 0

    def again(self, cut: Cut, progress: int = 0) -> None:
        """Wait before the next try; ``progress`` are the bytes that the last one got. Raises ``TransferError``."""
        self._failed = 0 if progress >= PROGRESS else self._failed + 1
        if self._failed >= TRIES:
            raise TransferError(f"{cut}, {TRIES} times.", hint="Try again: what is there already stays.") from None
        self._wait(min(LONGEST_WAIT, max(cut.wait, 0.5 * 2**self._failed)))


@dataclass(frozen=True, slots=True)
class Answer:
    """What a server answers, while its body is read. ``host`` and ``address`` are those that answer in the end."""

    status: int
    headers: Mapping[str, str]
    host: str
    address: str
    _response: urllib3.HTTPResponse
    _patience: Patience

    def blocks(self) -> Iterator[bytes]:
        """Yield the body in blocks of at most 1 MiB. Raises ``Cut`` at a cut, after all that came before it."""
        ended = False
        while not ended:
            block, fault = bytearray(), None
            try:
                with ended_after(self._patience.block, self._response.shutdown):
                    while not ended and len(block) < BLOCK:
                        piece = self._response.read1(BLOCK - len(block))
                        block += piece
                        ended = not piece
            except FAULTS as error:
                fault = error
            if block:
                yield bytes(block)
            if fault is not None:
                raise Cut(f"{self.host} {connection.reason(fault)}") from None

    def whole(self, limit: int) -> bytes:
        """Return the body, of at most ``limit`` bytes. Raises ``TransferError`` for more, and ``Cut``."""
        data = bytearray()
        for block in self.blocks():
            data += block
            if len(data) > limit:
                raise TransferError(f"{self.host} answers with more than {limit:,} bytes.", hint="Check the address.")
        return bytes(data)

    def refusal(self, what: str) -> TransferError:
        """Return what a status that was not asked for means. ``what`` it is that was asked for, as in "the index"."""
        code = ""
        try:
            if found := _CODE.search(self.whole(_MAX_REFUSAL)):
                code = f", {found[1].decode()}"
        except (Cut, TransferError):
            pass
        if self.status == 404:
            return TransferError(f"{self.host} has not got {what} (404{code}).", hint="Check the address.")
        if self.status in (401, 403):
            return TransferError(
                f"{self.host} does not give {what} to this user ({self.status}{code}).",
                hint=f"Log in with: docker login {self.host}, or set {USER} and {PASSWORD}.",
            )
        return TransferError(f"{self.host} refuses {what}: status {self.status}{code}.", hint="Ask who runs it.")


class Client:
    """Speaks to the server of ``home``, an address, and to those to which it sends on.

    ``plain_http`` allows to be overheard; to this machine itself it is always allowed. ``wait`` takes the seconds
    before the next try, ``credentials`` gives those of a host, None without any. Raises ``UsageError`` for an address
    that would have to be overheard.
    """

    def __init__(
        self,
        home: str,
        plain_http: bool = False,
        *,
        wait: Callable[[float], object] = time.sleep,
        patience: Patience | None = None,
        credentials: Callable[[str], Credentials | None] = find,
    ) -> None:
        self.home, self._home, self._plain_http = home, _origin(home), plain_http
        self._patience, self._wait, self._credentials = patience or Patience(), wait, credentials
        self._pools: dict[Origin, urllib3.PoolManager] = {}
        self._authorization: str | None = None
        self._answered = False
        if self._heard(home):
            raise UsageError(
                f"{brief(self._home[1])} is asked by plain http, which anybody on the way can read and change.",
                hint="Take https, or allow it with --plain-http.",
            )

    def close(self) -> None:
        """End all connections."""
        for each in self._pools.values():
            each.clear()
        self._pools.clear()

    def tries(self) -> Tries:
        """Return a count of tries for one work."""
        return Tries(self._wait)

    def tried(self, work: Callable[[], T]) -> T:
        """Do what may be cut, and return what it returns. Raises ``TransferError``."""
        tries = self.tries()
        while True:
            try:
                return work()
            except Cut as cut:
                tries.again(cut)

    def fetch(self, address: str, limit: int, what: str, headers: Mapping[str, str] | None = None) -> bytes:
        """Return a body of at most ``limit`` bytes. ``what`` it is, for a refusal. Raises ``TransferError``."""

        def once() -> bytes:
            with self.exchange("GET", address, headers) as answer:
                if answer.status != 200:
                    raise answer.refusal(what)
                return answer.whole(limit)

        return self.tried(once)

    @contextmanager
    def exchange(
        self,
        method: str,
        address: str,
        headers: Mapping[str, str] | None = None,
        body: Callable[[], Iterable[bytes]] | None = None,
    ) -> Iterator[Answer]:
        """Ask once, and yield the answer when no redirect and no question who one is are left.

        ``body`` gives what is sent, as often as that is needed. Raises ``Cut`` where it may be tried again, and
        ``TransferError``.
        """
        asked = 0
        for _ in range(_REDIRECTS + 1):
            answer = self._asked(method, address, headers or {}, body)
            if answer.status == 401 and asked < 2 and _origin(answer.address) == self._home:
                asked += 1
                question = authorization.challenge(answer.headers.get("www-authenticate", ""))
                try:
                    self._authorize(question, answer)
                finally:
                    _end(answer)
                continue
            if answer.status not in _REDIRECTED or method not in ("GET", "HEAD"):
                break
            _end(answer)
            address = self.joined(answer)
        else:
            raise TransferError(f"{answer.host} sends on more than {_REDIRECTS} times.", hint="Check the address.")
        try:
            if answer.status in _BUSY:
                after = answer.headers.get("retry-after", "")
                seconds = float(after) if re.fullmatch("[0-9]{1,4}", after) else 0.0
                raise Cut(f"{answer.host} is busy (status {answer.status})", seconds)
            yield answer
        finally:
            _end(answer)

    def joined(self, answer: Answer) -> str:
        """Return the address that an answer's Location names. Raises ``TransferError`` where it is not to be asked."""
        return self._sent_on(answer, answer.headers.get("location", ""))

    def _sent_on(self, answer: Answer, where: str) -> str:
        try:
            address = urljoin(answer.address, where)
            parts = urlsplit(address)
            fit = bool(where and parts.hostname and parts.port != 0 and "@" not in parts.netloc)
        except ValueError:
            fit = False
        if not fit or parts.scheme not in ("http", "https"):
            raise TransferError(f"{answer.host} sends on to no web address.", hint="Check the address.")
        if self._heard(address) or (parts.scheme == "http" and answer.address.startswith("https:")):
            raise TransferError(f"{answer.host} sends on from https to plain http.", hint="Ask who runs it.")
        return address

    def _heard(self, address: str) -> bool:
        """Say whether anybody on the way could read and change it, and the user has not allowed that."""
        parts = urlsplit(address)
        return parts.scheme != "https" and not self._plain_http and not is_loopback(parts.hostname or "")

    def _asked(
        self, method: str, address: str, headers: Mapping[str, str], body: Callable[[], Iterable[bytes]] | None
    ) -> Answer:
        origin = _origin(address)
        sent = {"Accept-Encoding": "identity", "User-Agent": "edgepack", **headers}
        if self._authorization is not None and origin == self._home and "Authorization" not in sent:
            sent["Authorization"] = self._authorization
        host = urlsplit(address).netloc
        try:
            response = self._pool(origin).request(
                method,
                address,
                headers=sent,
                body=None if body is None else body(),
                timeout=self._patience.timeout(sealing=body is not None),
                redirect=False,
                preload_content=False,
                decode_content=False,
            )
        except EdgepackError:  # of what is sent
            raise
        except UNASKABLE:
            raise TransferError(f"{brief(host)} is no host that can be asked.", hint="Check the address.") from None
        except FAULTS as error:
            said = f"{host} {connection.reason(error)}"
            if not self._answered:
                raise TransferError(f"{said}.", hint="Check the address, and the network.") from None
            raise Cut(said) from None
        self._answered = True
        assert isinstance(response, urllib3.HTTPResponse)
        return Answer(response.status, response.headers, host, address, response, self._patience)

    def _pool(self, origin: Origin) -> urllib3.PoolManager:
        if origin not in self._pools:
            if len(self._pools) >= _POOLS:  # a server may send on to as many others as it likes
                self.close()
            self._pools[origin] = connection.pools(*origin[:2])
        return self._pools[origin]

    def _authorize(self, question: Challenge | None, answer: Answer) -> None:
        """Find out what to tell the server that asked. Raises ``TransferError`` where there is nothing, and ``Cut``."""
        known = self._credentials(answer.host)
        if question is None or (question.scheme == "basic" and (known is None or known.identity)):
            raise answer.refusal("what was asked for")
        if question.scheme == "bearer":
            self._authorization = self._token(question, self._sent_on(answer, question.realm), known)
        elif known is not None:
            self._authorization = known.basic()

    def _token(self, question: Challenge, realm: str, known: Credentials | None) -> str:
        if known is not None and known.identity:
            form = question.form(known)
            headers = {"Content-Type": "application/x-www-form-urlencoded", "Content-Length": str(len(form))}
            answer = self._asked("POST", realm, headers, lambda: [form])
        else:
            headers = {"Authorization": known.basic()} if known is not None else {}
            answer = self._asked("GET", realm + question.query(realm), headers, None)
        try:
            if answer.status in _BUSY:
                raise Cut(f"{answer.host} is busy (status {answer.status})")
            if answer.status != 200:
                raise answer.refusal("a token")
            return authorization.token(answer.whole(MAX_TOKEN), answer.host)
        finally:
            _end(answer)


def _origin(address: str) -> Origin:
    parts = urlsplit(address)
    return parts.scheme, parts.hostname or "", parts.port


def _end(answer: Answer) -> None:
    """Be done with an answer: what little is left of it is read, so that the connection can be used again."""
    left = answer._response.length_remaining
    with suppress(Cut):
        if left is not None and left <= _MAX_REFUSAL:
            for _ in answer.blocks():
                pass
    answer._response.close()
