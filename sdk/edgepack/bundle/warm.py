"""What lies beside a payload that is kept warm: ``warm.state``, and ``warm.json``, which says what it is the state of.

Plain data, bytes in and values out. ``edgepack.warm`` makes and uses it, ``docs/bundle-format.md`` defines it.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

import msgspec

from edgepack.bundle.manifest import TokenId, Variant

FACTS, STATE = "warm.json", "warm.state"
MAX_FACTS = 8 << 20
MAX_STATE = 256 << 20
"""It is read as a whole, beside the cache that it goes into."""


class Warm(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """``tokens`` are those that every chat with one system prompt begins with, ``made`` what decides the bits of their
    state, each under its name: a load uses it where all of them are the same."""

    version: Literal[1] = 1
    made: dict[str, str]
    tokens: list[TokenId]


@dataclass(frozen=True, slots=True)
class Warmth:
    """What a device makes of a state of so many ``tokens``, in ``bytes``. ``obstacle`` says why it is not used."""

    tokens: int
    bytes: int
    obstacle: str | None = None

    def __str__(self) -> str:
        if self.obstacle is not None:
            return f"not warm: {self.obstacle}"
        return f"warm: the first {self.tokens} tokens of a system prompt are in the cache once it is loaded"


def encode(warm: Warm) -> bytes:
    """Return the bytes of ``warm.json``."""
    return msgspec.json.encode(warm) + b"\n"


def decode(data: bytes) -> Warm:
    """Return what ``warm.json`` says. Raises ``ValueError`` for anything else, and for no token at all."""
    try:
        warm = msgspec.json.decode(data, type=Warm)
    except RecursionError as error:
        raise ValueError(str(error)) from None
    if not warm.tokens:
        raise ValueError("it names no token")
    return warm


def payload_of(variant: Variant) -> str:
    """Return a digest of what an engine loads of a variant: the names and digests of its files, without those here."""
    whole = hashlib.sha256()
    for file in sorted(variant.files, key=lambda each: each.path):
        if file.path not in (FACTS, STATE):
            whole.update(f"{file.sha256} {file.path}\n".encode(errors="surrogatepass"))
    return whole.hexdigest()
