"""A file of a server from any byte on, whatever cuts the connection: what came is kept, and the rest is asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator

from edgepack.errors import TransferError
from edgepack_ship.registry.client import Answer, Client, Cut

_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")
_LENGTH = re.compile(r"[0-9]{1,18}")


def download(client: Client, address: str, size: int, begin: int = 0) -> Iterator[bytes]:
    """Yield the bytes of a file of ``size`` bytes from the byte ``begin`` on, never one more.

    A server without ranges sends all of it anew, of which the beginning is passed over. Raises ``TransferError`` for
    a file of another size, and when tries in a row get on too little.
    """
    at, tries = begin, client.tries()
    while at < size:
        since = at
        try:
            for block in _once(client, address, size, at):
                at += len(block)
                yield block
        except Cut as cut:
            tries.again(cut, at - since)


def _once(client: Client, address: str, size: int, at: int) -> Iterator[bytes]:
    headers = {"Range": f"bytes={at}-"} if at else None
    with client.exchange("GET", address, headers) as answer:
        over = at - _first(answer, size, at)
        for block in answer.blocks():
            passed = min(over, len(block))
            over -= passed
            if rest := block[passed : passed + size - at]:
                at += len(rest)
                yield rest
            if at == size:
                return
        raise Cut(f"{answer.host} ended after {at:,} of {size:,} bytes")


def _first(answer: Answer, size: int, at: int) -> int:
    """Return the byte of the file with which the answer begins, which is ``at`` or the first.

    Raises ``TransferError`` for any other answer, and where it is of a file of another size.
    """
    if answer.headers.get("content-encoding", "identity") != "identity":
        raise TransferError(f"{answer.host} sends a file encoded, which was not asked for.", hint="Ask who runs it.")
    if answer.status == 206 and (found := _RANGE.fullmatch(answer.headers.get("content-range", ""))):
        first, whole = int(found[1]), size if found[3] == "*" else int(found[3])
        if first != at:
            raise TransferError(f"{answer.host} sends another part than was asked for.", hint="Ask who runs it.")
    elif answer.status == 200:
        length = answer.headers.get("content-length", "")
        first, whole = 0, int(length) if _LENGTH.fullmatch(length) else size
    elif answer.status == 416:
        first, whole = 0, -1
    else:
        raise answer.refusal("a file of the bundle")
    if whole != size:
        has = "fewer" if whole < size else "more"
        raise TransferError(
            f"{answer.host} has a file of {has} bytes than the {size:,} of the bundle's manifest.",
            hint="Push or mirror the bundle again.",
        )
    return first
