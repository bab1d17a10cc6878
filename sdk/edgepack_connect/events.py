"""From the bytes of a stream to its events: server-sent events, or lines of JSON. It knows nothing of their meaning.

Server-sent events are read as the HTML standard says (section 9.2): lines end with CR, LF or both, those of ``data``
are joined, comments and other fields mean nothing here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from edgepack.errors import EngineError
from edgepack_connect.patience import MAX_EVENT


class Splitter(Protocol):
    """Takes bytes as they come, and gives the events that are whole."""

    content_type: str

    def push(self, data: bytes) -> Iterator[bytes]:
        """Yield the events that end in these bytes. Raises ``EngineError`` for one that is too long."""
        ...

    def rest(self) -> bytes:
        """Return the event that has no end yet, for a stream that ended."""
        ...


class _Lines:
    def __init__(self) -> None:
        self._held = bytearray()
        self._after_cr = False

    def push(self, data: bytes) -> Iterator[bytes]:
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
        if data:
            self._after_cr = data.endswith(b"\r")
        *ended, last = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        for piece in ended:
            line = bytes(self._held) + piece
            self._held.clear()
            _check(len(line))
            yield line
        self._held += last
        _check(len(self._held))

    @property
    def held(self) -> bytes:
        return bytes(self._held)


class ServerSentEvents:
    """text/event-stream."""

    content_type = "text/event-stream"

    def __init__(self) -> None:
        self._lines = _Lines()
        self._data: list[bytes] = []
        self._size = 0

    def push(self, data: bytes) -> Iterator[bytes]:
        """Yield the events that end in these bytes. Raises ``EngineError``."""
        for line in self._lines.push(data):
            if not line:
                if self._data:
                    yield b"\n".join(self._data)
                self._data, self._size = [], 0
            elif line.startswith(b"data:"):
                value = line[5:].removeprefix(b" ")
                self._size += len(value) + 1
                _check(self._size)
                self._data.append(value)

    def rest(self) -> bytes:
        """Return nothing: an event without its empty line is none."""
        return b""


class JsonLines:
    """application/x-ndjson."""

    content_type = "application/x-ndjson"

    def __init__(self) -> None:
        self._lines = _Lines()

    def push(self, data: bytes) -> Iterator[bytes]:
        """Yield the lines that end in these bytes. Raises ``EngineError``."""
        yield from (line for line in self._lines.push(data) if line.strip())

    def rest(self) -> bytes:
        """Return the last line, which may have no end."""
        return self._lines.held.strip()


def _check(size: int) -> None:
    if size > MAX_EVENT:
        raise EngineError(
            f"The server sent an event of more than {MAX_EVENT >> 20} MiB.", hint="Check the address: is it a model's?"
        )
