"""The envelope of a session's snapshot, the same for every engine: what it belongs to, and that it is whole.

In little-endian order: the magic, a 32-bit version of this layout, the crc32 of all that follows, the size of the
header, the header as JSON (facts, length), and the engine's payload. A checksum finds damage, not malice: restore only
what your own application has saved.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Final
from zlib import crc32

import msgspec

from edgepack.bundle.decoder import Decoder

Buffer = bytes | memoryview

_MAGIC: Final = b"EDGESNAP"
_VERSION: Final = 1
_PREFIX: Final = struct.Struct("<8sII")
_SIZE: Final = struct.Struct("<I")


class _Header(msgspec.Struct, frozen=True):
    facts: dict[str, str]
    length: int


def facts(engine: str, decoder: Decoder, kv_cache: str) -> dict[str, str]:
    """Return what a snapshot must share with the session that it is restored to.

    ``engine`` names whoever understands the payload, with its version where that decides; ``kv_cache`` is the element
    type of the cache. The shape and a checksum of the whole description stand for the decoder.
    """
    return {
        "engine": engine,
        "KV cache": kv_cache,
        "shape": f"{decoder.n_layers} layers with {decoder.kv_values_per_token} values a token",
        "vocabulary": str(decoder.n_vocab),
        "decoder": f"{crc32(msgspec.json.encode(decoder)):08x}",
    }


def seal(facts: Mapping[str, str], length: int, payload: Sequence[Buffer]) -> bytes:
    """Return a snapshot of ``length`` tokens; the parts of the payload are joined."""
    header = msgspec.json.encode(_Header(dict(facts), length))
    parts = [_SIZE.pack(len(header)), header, *payload]
    checksum = 0
    for part in parts:
        checksum = crc32(part, checksum)
    return b"".join([_PREFIX.pack(_MAGIC, _VERSION, checksum), *parts])


def unseal(state: bytes, facts: Mapping[str, str], context: int) -> tuple[int, memoryview]:
    """Return the length and the payload of a snapshot, which stays in ``state``.

    Raises ``ValueError`` where it is no snapshot, is damaged, differs in a fact, or has more than ``context`` tokens.
    """
    if len(state) < _PREFIX.size + _SIZE.size or not state.startswith(_MAGIC):
        raise ValueError("These bytes are not a snapshot of a session.")
    _, version, checksum = _PREFIX.unpack_from(state)
    if version != _VERSION:
        raise ValueError(f"The snapshot has layout {version}, and only layout {_VERSION} is known here.")
    body = memoryview(state)[_PREFIX.size :]
    if crc32(body) != checksum:
        raise ValueError("The snapshot is damaged or cut short: its checksum differs.")
    (size,) = _SIZE.unpack_from(body)
    header = msgspec.json.decode(body[_SIZE.size : _SIZE.size + size], type=_Header)
    for name, fact in facts.items():
        if header.facts.get(name) != fact:
            raise ValueError(f"The {name} of the snapshot is {header.facts.get(name)}, that of this session {fact}.")
    if not 0 <= header.length <= context:
        raise ValueError(f"The snapshot has {header.length} tokens, more than the context of {context}.")
    return header.length, body[_SIZE.size + size :]
