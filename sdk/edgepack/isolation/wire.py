"""What an isolated engine and its parent say to each other: frames over a socket, msgpack and raw numbers, no pickle.

A frame is the sizes of its two parts, a message (msgpack) and a payload: token ids as int32, logits or states as
float32, the bytes of a snapshot. The parent asks and the child answers, one request at a time; only ``Cancel`` comes in
between, and has no answer. A closed socket ends both.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

import msgspec

from edgepack import errors
from edgepack.bundle.decoder import Decoder
from edgepack.errors import EdgepackError
from edgepack.runtime import Options

Payload = bytes | bytearray | memoryview

_SIZES: Final = struct.Struct("=IQ")
_ONE_WRITE: Final = 1 << 16


class Open(msgspec.Struct, frozen=True, tag=True):
    """Find the runtime and open the variant, a path in the file system's bytes."""

    runtime: str
    variant: bytes
    decoder: Decoder
    options: Options


class Forward(msgspec.Struct, frozen=True, tag=True):
    """Append the payload's ids: a step of the forward of that number.

    The answer's payload is the logits after the last of them, or after each of them with ``every``. ``limit_s`` is how
    long the parent waits.
    """

    number: int
    every: bool
    limit_s: float


class Hidden(msgspec.Struct, frozen=True, tag=True):
    """As ``Forward``, of a model without a head: the states after the ids from index ``first`` on."""

    number: int
    first: int
    limit_s: float


class Part(msgspec.Struct, frozen=True, array_like=True):
    """How many of a batch's ids are a sequence's, and whether the logits after each are wanted."""

    sequence: int
    count: int
    every: bool


class Batch(msgspec.Struct, frozen=True, tag=True):
    """As ``Forward``, of several sequences together: the payloads are one part's after the other's."""

    number: int
    parts: list[Part]
    limit_s: float


class Rewind(msgspec.Struct, frozen=True, tag=True):
    """Forget all but the first ``length`` tokens of a sequence, as far as there are more, and answer how many are
    kept."""

    length: int
    sequence: int = 0


class Copy(msgspec.Struct, frozen=True, tag=True):
    """Let a sequence hold the first ``length`` tokens of another, and answer how many it holds."""

    source: int
    target: int
    length: int


class Snapshot(msgspec.Struct, frozen=True, tag=True):
    """Answer with the cache as payload."""


class Restore(msgspec.Struct, frozen=True, tag=True):
    """Replace the cache with the payload."""


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Stop the forward of that number, whether its next step runs or comes."""

    number: int


Step = Forward | Hidden | Batch
Request = Open | Forward | Hidden | Batch | Rewind | Copy | Snapshot | Restore | Cancel


class Failure(msgspec.Struct, frozen=True):
    """An error: the name of a class of ``edgepack.errors`` or "ValueError", and what it says."""

    kind: str
    message: str
    hint: str | None = None


class Answer(msgspec.Struct, frozen=True):
    """What came of a request: an error, to ``Open`` what the session is, to others the length of the cache."""

    failure: Failure | None = None
    device: str = ""
    snapshots: bool = False
    hidden: bool = False
    sequences: int = 1
    length: int = 0


def send(channel: socket.socket, message: Request | Answer, payload: Payload = b"") -> None:
    """Send a frame. Raises ``OSError`` where the other side is gone or does not read in time."""
    head = msgspec.msgpack.encode(message)
    head = _SIZES.pack(len(head), len(payload)) + head
    if len(payload) <= _ONE_WRITE:
        channel.sendall(head + payload)
    else:
        channel.sendall(head)
        channel.sendall(payload)


def receive(channel: socket.socket, into: memoryview | None = None) -> tuple[bytearray, Payload]:
    """Return a frame's message, still encoded, and its payload, in ``into`` where it has that size.

    Raises ``EOFError`` where the other side is gone, ``OSError`` where it fails or is not in time.
    """
    sizes = bytearray(_SIZES.size)
    _fill(channel, sizes)
    head_size, size = _SIZES.unpack(sizes)
    head = bytearray(head_size)
    _fill(channel, head)
    payload = into if into is not None and len(into) == size else bytearray(size)
    _fill(channel, payload)
    return head, payload


def failure(error: Exception) -> Failure:
    """Return an error in words, as the nearest class that the other side knows."""
    if isinstance(error, EdgepackError):
        known = next(kind for kind in type(error).__mro__ if getattr(errors, kind.__name__, None) is kind)
        return Failure(known.__name__, error.message, error.hint)
    if isinstance(error, ValueError):
        return Failure("ValueError", str(error))
    return Failure("EngineError", f"The runtime raised {type(error).__name__}: {error}.")


def error(failure: Failure) -> Exception:
    """Return the error that a failure tells of."""
    if failure.kind == "ValueError":
        return ValueError(failure.message)
    kind: type[EdgepackError] = getattr(errors, failure.kind)
    return kind(failure.message, hint=failure.hint)


def _fill(channel: socket.socket, buffer: bytearray | memoryview) -> None:
    missing = memoryview(buffer)
    while missing:
        count = channel.recv_into(missing)
        if not count:
            raise EOFError("the other side has closed the connection")
        missing = missing[count:]
