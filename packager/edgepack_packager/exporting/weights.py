"""Whether a payload holds the weights of its checkpoint, wherever and in whatever order it keeps them.

The logits of a probe hear no row of an embedding that it does not meet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Protocol

from edgepack_packager.checkpoint import Checkpoint
from edgepack_packager.checkpoint.safetensors import Entry
from edgepack_packager.checkpoint.weights import Float32


class Tensors(Protocol):
    """Tensors by name, of which rows can be read as float32."""

    def rows(self, name: str, start: int, stop: int) -> Float32: ...


def missing(held: Iterable[bytes], checkpoint: Checkpoint, unused: Iterable[str]) -> list[str]:
    """Return the tensors of a checkpoint that are not held, bit for bit in float32, as they are or transposed.

    ``held`` are the digests of what a payload has, ``unused`` the tensors that the model's class has no place for.
    """
    known = set(held)
    return [
        name
        for name in sorted(checkpoint.tensors.keys() - set(unused))
        if known.isdisjoint(spellings(checkpoint, name, checkpoint.tensors[name]))
    ]


def spellings(tensors: Tensors, name: str, entry: Entry) -> Iterator[bytes]:
    """Yield the digest of a tensor, and of its transpose where it is a matrix."""
    values = tensors.rows(name, 0, entry.shape[0])
    yield digest(values.tobytes())
    if len(entry.shape) == 2:
        yield digest(values.T.tobytes())


def digest(data: bytes | memoryview) -> bytes:
    """Return the digest of a tensor's bytes: float32, little-endian."""
    return hashlib.blake2b(data, digest_size=16).digest()
