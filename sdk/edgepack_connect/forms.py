"""How a dialect writes a request and what its events say; the modules beside it are those dialects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from edgepack_connect.capabilities import Kind
from edgepack_connect.events import Splitter
from edgepack_connect.told import Told

DEFAULT_TOKENS = 256
"""Of a text, where nobody says how many it may have at most: what a bundle has by default. OpenAI's interface cuts it
after 16, and some servers go on to the end of the context."""


class Form(Protocol):
    """A dialect."""

    paths: Mapping[Kind, str]
    """The endpoint that answers a chat or continues a text, behind the address of the server."""

    def body(
        self, kind: Kind, model: str, asked: str | Sequence[Mapping[str, Any]], fields: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the JSON of a request. ``asked`` is a text, or messages that were checked."""
        ...

    def splitter(self) -> Splitter:
        """Return what takes a stream apart."""
        ...

    def read(self, event: bytes) -> Told | None:
        """Return what an event says, None for the one that is the end of the stream.

        Raises ``EngineError`` and, for an error of the server's, what ``faults.refused`` makes of it.
        """
        ...
