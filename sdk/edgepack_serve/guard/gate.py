"""The gate: every request passes it before any door. It refuses by headers alone, and reads no body."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack_serve.guard import tokens
from edgepack_serve.guard.names import Names
from edgepack_serve.refusals import RefusedError

Refuse = Callable[[str, RefusedError], ASGIApp]
"""Makes the answer to a request for a path that is refused."""

_SAFE = {
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
}
HEAD_BYTES, PATH_BYTES = 32 << 10, 4 << 10
_PREFLIGHT_S = "600"
_OPEN_FETCHES = ("same-origin", "none")


class Gate:
    """``open_paths`` need no token: what a page is made of, and whether the server lives."""

    def __init__(
        self, app: ASGIApp, names: Names, token: str | None, open_paths: Collection[str], refuse: Refuse
    ) -> None:
        self._app, self._names, self._token, self._refuse = app, names, token, refuse
        self._open = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, answer a preflight, or refuse it."""
        headers = Headers(scope=scope)
        foreign = self._foreign(scope, headers)
        try:
            _check_sizes(scope)
            self._check_host(headers)
            self._check_origin(scope, headers)
            if foreign is not None and scope["method"] == "OPTIONS":
                await _preflight(headers)(scope, receive, _adding(send, _shared(foreign)))
                return
            self._check_token(scope, headers)
        except RefusedError as error:
            await self._refuse(scope["path"], error)(scope, receive, _adding(send, _SAFE))
            return
        more = _SAFE if foreign is None else _SAFE | _shared(foreign)
        await self._app(scope, receive, _adding(send, more))

    def _foreign(self, scope: Scope, headers: Headers) -> str | None:
        """Return the origin of a page that is not the server's own and may ask, None for any other request."""
        origin = headers.get("origin")
        if origin is None or origin.strip().lower() not in self._names.origins:
            return None
        return origin.strip()

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if not self._names.knows(host):
            raise RefusedError(
                403,
                f"This server does not answer to the host {host[:100]!r}.",
                hint="Ask it by its address, or start it with --host-name.",
                code="forbidden_host",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is not None:
            if not self._names.admits(origin, scope["scheme"], host):
                raise RefusedError(
                    403,
                    f"Pages of {origin[:100]!r} may not ask this server.",
                    hint="Start it with --origin for those that may.",
                    code="forbidden_origin",
                )
            return
        # An image or a form of another page sends no Origin; browsers say so elsewhere.
        fetch = headers.get("sec-fetch-site", "none")
        if fetch not in _OPEN_FETCHES and headers.get("sec-fetch-mode") != "navigate":
            raise RefusedError(403, "Another page's content may not ask this server.", code="forbidden_origin")

    def _check_token(self, scope: Scope, headers: Headers) -> None:
        if self._token is None or scope["path"] in self._open or scope["path"].startswith("/static/"):
            return
        if not tokens.same(self._token, given := tokens.shown(headers)):
            what = "is not this server's" if given else "is missing"
            raise RefusedError(
                401,
                f"The token {what}.",
                hint="Send it as Authorization: Bearer, or as x-api-key.",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )


def _check_sizes(scope: Scope) -> None:
    """h11 bounds what it has to keep; a head that comes at once may be longer."""
    if len(scope["raw_path"]) + len(scope["query_string"]) > PATH_BYTES:
        raise RefusedError(414, f"The path is longer than {PATH_BYTES} bytes.", headers={"Connection": "close"})
    if sum(len(name) + len(value) + 4 for name, value in scope["headers"]) > HEAD_BYTES:
        raise RefusedError(431, f"The headers are longer than {HEAD_BYTES} bytes.", headers={"Connection": "close"})


def _preflight(headers: Headers) -> ASGIApp:
    """Return the answer to a page that may ask and asks whether it may."""
    given = {
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": headers.get("access-control-request-headers", "authorization, content-type"),
        "Access-Control-Max-Age": _PREFLIGHT_S,
    }
    if headers.get("access-control-request-private-network") == "true":
        given["Access-Control-Allow-Private-Network"] = "true"

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        lines = [(name.lower().encode(), value.encode("latin-1")) for name, value in given.items()]
        await send({"type": "http.response.start", "status": 204, "headers": lines})
        await send({"type": "http.response.body", "body": b""})

    return answer


def _shared(origin: str) -> dict[str, str]:
    return {
        "Access-Control-Allow-Origin": origin,
        "Access-Control-Expose-Headers": "Retry-After",
        "Vary": "Origin",
        "Cross-Origin-Resource-Policy": "cross-origin",
    }


def _adding(send: Send, more: Mapping[str, str]) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in more.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
