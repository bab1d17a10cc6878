"""The token that a client shows. Pure rules over headers."""

from __future__ import annotations

import hmac
import os
from pathlib import Path

from starlette.datastructures import Headers

from edgepack.errors import UsageError

VARIABLE = "EDGEPACK_TOKEN"
_LEAST = 16
_MAKE = "Make one: head -c 24 /dev/urandom | base64 > token"


def read(file: Path | None) -> str | None:
    """Return the token in a file, else the one in ``EDGEPACK_TOKEN``, None where there is neither.

    Raises ``UsageError`` for one that is short or not of visible ASCII.
    """
    if file is None:
        name, found = VARIABLE, os.environ.get(VARIABLE)
        if not found:
            return None
    else:
        name = str(file)
        try:
            found = file.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"The token in {file} cannot be read: {error}.", hint=_MAKE) from None
    if len(found) < _LEAST or not found.isascii() or not found.isprintable() or " " in found:
        raise UsageError(f"{name} holds no token of at least {_LEAST} visible letters.", hint=_MAKE)
    return found


def shown(headers: Headers) -> str | None:
    """Return the token that a request shows, as ``Authorization: Bearer`` or as ``x-api-key``; None for none."""
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and value.strip():
        return value.strip()
    return headers.get("x-api-key")


def same(token: str, given: str | None) -> bool:
    """Whether it is the token; how long this takes does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(token.encode(), given.encode("utf-8", "surrogateescape"))
