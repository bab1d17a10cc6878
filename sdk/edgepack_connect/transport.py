"""The socket: one client of one server. It follows no redirect, tries nothing again, unpacks nothing, and reads no more
than it was told to. All of it runs on the line's loop."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import msgspec

from edgepack.errors import EdgepackError, EngineError, EngineTimeoutError, UsageError
from edgepack_connect.address import Address
from edgepack_connect.faults import flat, refused, words_of
from edgepack_connect.patience import MAX_PROBE, MAX_REFUSAL, Patience

_FAULTS = (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError, OSError, ValueError, RuntimeError)
"""What an exchange may raise, whatever the server does."""
_KEPT_S = 2.0
"""For how long a connection without work is kept: less than servers keep them, so that none is used that was closed."""


class Transport:
    """Asks one server. ``server`` is what errors call it."""

    def __init__(self, address: Address, api_key: str | None, patience: Patience) -> None:
        self.server = address.host
        self._address, self._key, self._patience = address, api_key, patience
        self._client: httpx.AsyncClient | None = None
        self._probed: dict[str, Mapping[str, Any] | None] = {}

    async def get(self, path: str) -> Mapping[str, Any] | None:
        """Return the JSON object that stands at a path, None where there is none. Each path is asked once.

        Raises ``EngineError`` where the server cannot be reached, ``UsageError`` where it refuses this user.
        """
        if path not in self._probed:
            self._probed[path] = await self._asked(path)
        return self._probed[path]

    @asynccontextmanager
    async def post(
        self, path: str, body: Mapping[str, object], content_type: str
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """Send JSON, and yield the pieces of the stream that answers it, as they come. Raises as servers refuse."""
        data = msgspec.json.encode(body)
        async with self._sent("POST", path, self._patience.piece, data) as response:
            if response.status_code != 200:
                raise await self._refusal(response)
            found = response.headers.get("content-type", "").partition(";")[0].strip().lower()
            if found != content_type:
                raise EngineError(
                    f"{self.server} answers in {found[:60] or 'no type'!r}, where a stream of {content_type} was asked "
                    "for.",
                    hint="Check the address: is it a model's?",
                )
            yield self._pieces(response)

    async def close(self) -> None:
        """End all connections."""
        if self._client is not None:
            await self._client.aclose()

    async def _asked(self, path: str) -> Mapping[str, Any] | None:
        async with self._sent("GET", path, self._patience.probe) as response:
            if response.status_code in (401, 403):
                raise await self._refusal(response)
            if response.status_code != 200:
                return None
            try:
                async with asyncio.timeout(self._patience.probe):
                    found = msgspec.json.decode(flat(await self._whole(response, MAX_PROBE)))
            except (msgspec.DecodeError, ValueError):
                return None
            except TimeoutError:
                raise self._late() from None
        return found if isinstance(found, dict) else None

    @asynccontextmanager
    async def _sent(
        self, method: str, path: str, wait: float, data: bytes | None = None
    ) -> AsyncIterator[httpx.Response]:
        client = self._opened()
        headers = {"Accept-Encoding": "identity", "User-Agent": "edgepack"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        limits = httpx.Timeout(connect=self._patience.reach, read=wait, write=wait, pool=None)
        response: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._patience.reach + wait):
                request = client.build_request(
                    method, self._address.base + path, headers=headers, content=data, timeout=limits
                )
                response = await client.send(request, stream=True)
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise EngineError(
                    f"{self.server} packs its answers, which it was not asked for.", hint="Ask who runs it."
                )
            yield response
        except EdgepackError as error:
            raise self.without_key(error) from None
        except TimeoutError:
            raise self._late() from None
        except _FAULTS as error:
            raise self._fault(error) from None
        finally:
            if response is not None:
                await response.aclose()

    async def _pieces(self, response: httpx.Response) -> AsyncIterator[bytes]:
        try:
            async for piece in response.aiter_raw():
                yield piece
        except _FAULTS as error:
            raise self._fault(error) from None

    async def _whole(self, response: httpx.Response, limit: int) -> bytes:
        data = bytearray()
        async for piece in response.aiter_raw():
            data += piece
            if len(data) > limit:
                raise EngineError(f"{self.server} answers with more than {limit:,} bytes.", hint="Check the address.")
        return bytes(data)

    async def _refusal(self, response: httpx.Response) -> EdgepackError:
        status, body = response.status_code, b""
        try:
            async with asyncio.timeout(self._patience.probe):
                body = await self._whole(response, MAX_REFUSAL)
        except (TimeoutError, EngineError, *_FAULTS):
            pass  # the status says enough
        message, code = words_of(body)
        return refused(status, message, code, self.server, response.headers.get("retry-after"))

    def _opened(self) -> httpx.AsyncClient:
        if self._client is None:
            self._client = httpx.AsyncClient(
                verify=ssl.create_default_context() if self._address.secure else False,
                trust_env=not self._address.is_loopback,  # its proxies
                follow_redirects=False,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=8, keepalive_expiry=_KEPT_S),
            )
        return self._client

    def without_key(self, error: EdgepackError) -> EdgepackError:
        """Return an error whose words do not have the key, which a server may have repeated."""
        if self._key is not None and self._key in str(error):
            return type(error)(error.message.replace(self._key, "***"), hint=error.hint)
        return error

    def _late(self) -> EngineTimeoutError:
        return EngineTimeoutError(
            f"{self.server} does not answer in time.", hint="Ask again, or wait longer: timeout_s."
        )

    def _fault(self, error: Exception) -> EdgepackError:
        """Return what befell an exchange, in words of our own: those of the library may hold addresses, and secrets."""
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLCertVerificationError):
                return EngineError(
                    f"{self.server} has a certificate that this machine does not trust: {cause.verify_message}.",
                    hint="Install its authority's in the system, or name it in SSL_CERT_FILE.",
                )
            if isinstance(cause, ssl.SSLError):
                return EngineError(f"{self.server} speaks no TLS that this machine takes.", hint="Is it http://?")
            cause = cause.__cause__ or cause.__context__
        match error:
            case httpx.ConnectTimeout() | httpx.ConnectError() | httpx.ProxyError():
                return EngineError(f"{self.server} cannot be reached.", hint="Is it started, and its address right?")
            case httpx.TimeoutException():
                return self._late()
            case httpx.RemoteProtocolError():
                return EngineError(f"{self.server} broke off, or speaks no HTTP.", hint="Ask again; its log says why.")
            case httpx.NetworkError() | OSError():
                return EngineError(f"{self.server} cut the connection.", hint="Ask again; its log says why.")
            case httpx.InvalidURL() | httpx.UnsupportedProtocol():
                return UsageError(f"The address of {self.server} cannot be asked.", hint="Check url.")
            case _:
                return EngineError(f"{self.server} answers as no server of HTTP does.", hint="Check the address.")
