"""The body of a request: JSON of a size and a depth that are bounded, in bounded time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
from starlette.types import Receive

from edgepack.bundle.form import depth_of
from edgepack.errors import UsageError
from edgepack_serve.refusals import RefusedError

_CLOSE = {"Connection": "close"}


class GoneError(Exception):
    """The client went before its request was whole."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a body may be: ``bytes`` long, of so many ``levels``, whole within ``seconds``."""

    bytes: int = 4 << 20
    levels: int = 64
    seconds: float = 30.0


async def read(headers: Mapping[str, str], receive: Receive, limits: Limits) -> dict[str, Any]:
    """Return the JSON object that a request has as its body.

    Raises ``RefusedError`` for another type or coding, for too much or too slow, ``UsageError`` for what is no object.
    """
    kind = headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":
        raise RefusedError(415, "The body is not sent as JSON.", hint="Send the header Content-Type: application/json.")
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RefusedError(415, "The body is compressed.", hint="Send it as it is.")
    length = headers.get("content-length", "")
    if length.isdigit() and int(length) > limits.bytes:
        raise _too_large(limits)
    try:
        async with asyncio.timeout(limits.seconds):
            data = await _received(receive, limits)
    except TimeoutError:
        raise RefusedError(
            408, f"The body did not come within {limits.seconds:g} s.", hint="Send it at once.", headers=_CLOSE
        ) from None
    return decoded(data, limits.levels)


def decoded(data: bytes | bytearray, levels: int) -> dict[str, Any]:
    """Return a JSON object. Raises ``UsageError`` for anything else, and for one of more levels."""
    if depth_of(data) > levels:
        raise UsageError(f"The body has more than {levels} levels.", hint="Send it flatter.")
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"The body is not JSON: {error}.", hint="Send one JSON object in UTF-8.") from None
    if not isinstance(found, dict):
        raise UsageError("The body is no JSON object.", hint='It is {"model": "...", ...}.')
    return found


async def _received(receive: Receive, limits: Limits) -> bytearray:
    data = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise GoneError
        data += message.get("body", b"")
        if len(data) > limits.bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return data


def _too_large(limits: Limits) -> RefusedError:
    return RefusedError(
        413,
        f"The body is larger than {limits.bytes} bytes.",
        hint="Send less, or serve with --max-body.",
        headers=_CLOSE,
    )
