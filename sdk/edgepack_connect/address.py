"""Where a server is, as users write it: ``http://HOST:PORT``, with or without /v1, and ``#MODEL`` behind it."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address
from urllib.parse import unquote, urlsplit

from edgepack.errors import UsageError, brief

_EXAMPLE = "Pass one such as http://127.0.0.1:8000."


@dataclass(frozen=True, slots=True)
class Address:
    """The beginning of all addresses of a server, without a slash at its end, and the model that was named with it."""

    base: str
    host: str
    secure: bool
    model: str | None = None

    @property
    def is_loopback(self) -> bool:
        """Whether it is this machine itself, so that nobody can listen on the way."""
        try:
            return self.host == "localhost" or ip_address(self.host).is_loopback
        except ValueError:
            return False


def read_address(url: str) -> Address:
    """Return what a user wrote. Raises ``UsageError`` for what is no address, or has a password in it."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"url is no address: {error}.", hint=_EXAMPLE) from None
    scheme = parts.scheme.lower()
    if scheme not in ("http", "https") or not host or any(not "!" <= letter <= "~" for letter in host):
        raise UsageError(f"url is {brief(url)!r}, which names no server.", hint=_EXAMPLE)
    if parts.username is not None or parts.password is not None:
        raise UsageError("url has a name or a password in it.", hint="Pass it as api_key, or in EDGEPACK_API_KEY.")
    if parts.query:
        raise UsageError("url has a query in it.", hint="Leave out what stands from the question mark on.")
    path = parts.path.rstrip("/").removesuffix("/v1")
    if any(not "!" <= letter <= "~" for letter in path):
        raise UsageError(f"url has the path {brief(path)!r}.", hint=_EXAMPLE)
    shown = f"[{host}]" if ":" in host else host
    base = f"{scheme}://{shown}{'' if port is None else f':{port}'}{path}"
    return Address(base, host, scheme == "https", unquote(parts.fragment) or None)
