"""What a request asks for, whatever its dialect, and what a dialect has to be able to do. Plain data: no HTTP here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from edgepack import Chunk, EdgepackError, Model, Result
from edgepack.decoding.options import ChatOptions

T = TypeVar("T")
Body = Mapping[str, object]
"""A request's JSON object, of Python's own types."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request asks for.

    ``messages`` are as ``Model.chat`` takes them; where they are None, ``prompt`` is continued. ``options`` are those
    of ``Model.chat``, or of ``Model.generate`` for a prompt. ``n`` answers are wanted, of one request: with a seed,
    answer i has seed + i; for none, the model is loaded and no more. ``context`` is how many tokens the model's has
    to hold. ``keep_s`` are the seconds that the model stays loaded afterwards, None where the server decides.
    ``kept`` is what the dialect itself wants to know again when it writes the answer.
    """

    model: str
    messages: Sequence[Mapping[str, object]] | None = None
    prompt: str | None = None
    options: ChatOptions = field(default_factory=lambda: ChatOptions())
    stream: bool = False
    n: int = 1
    context: int | None = None
    keep_s: float | None = None
    kept: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Head:
    """What an answer says of itself: an id without its dialect's prefix, when it was made (seconds since 1970), and by
    what: the beginning of the bundle's id, and the variant."""

    id: str
    created: int
    fingerprint: str


class Writer(Protocol):
    """Writes a stream: each method returns what goes out. The answers of one request may come in any mixture."""

    content_type: str
    """text/event-stream or application/x-ndjson."""

    def begin(self) -> Iterable[bytes]:
        """What stands before the first piece."""
        ...

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        """A piece of the answer of this number."""
        ...

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        """The end of the answer of this number: its tool calls, why it ended."""
        ...

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        """What stands after all answers: the usage."""
        ...

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        """What went wrong after the stream had begun; nothing stands after it."""
        ...

    def alive(self) -> Iterable[bytes]:
        """What keeps a connection open while there is nothing to say; nothing where the dialect has no such thing."""
        ...


class Dialect(Protocol):
    """How one endpoint reads requests and writes answers."""

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError`` whose sentence begins with the field's name."""
        ...

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return the JSON of an answer that is not streamed: a result for each of ``asked.n``."""
        ...

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes a stream."""
        ...

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return the JSON of an error."""
        ...


class Question(Protocol[T]):
    """How an endpoint reads and answers what asks a model for something else than a text, such as vectors or counts."""

    def read(self, body: Body) -> tuple[str, T]:
        """Return the name of the model, and what it is asked. Raises as ``Dialect.read``."""
        ...

    async def answer(self, model: Model, asked: T) -> Mapping[str, object]:
        """Return the JSON of the answer. Raises ``EdgepackError``."""
        ...

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return the JSON of an error."""
        ...
