"""What answers, here or on a server: the calls that ``edgepack.Model`` and the object of ``edgepack.connect`` share.

An application that asks for a ``LanguageModel`` moves from a device to a cluster by the one string that it gives to
``edgepack.open``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self, Unpack, overload

if TYPE_CHECKING:
    from edgepack.decoding.options import ChatOptions, GenerationOptions
    from edgepack.decoding.repro import Setup
    from edgepack.decoding.results import Chunk, Result
    from edgepack.text.prompts import Messages


@dataclass(frozen=True, slots=True)
class Served:
    """What is asked over a network: an address without secrets, the server's kind and version (None where it does not
    say), the name of a model there, and the tokens of its context (None likewise)."""

    url: str
    server: str
    version: str | None
    model: str
    context: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


class AnswerStream(Protocol):
    """An answer that is read piece by piece, see ``edgepack.Stream``."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __iter__(self) -> Self: ...
    def __next__(self) -> Chunk: ...

    def cancel(self) -> None:
        """End the answer as soon as that can be, with the finish reason "cancelled". From any thread."""

    def close(self) -> None:
        """End the answer. Leaving the ``with`` block does it; safe to call twice."""

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        ...


class AsyncAnswerStream(Protocol):
    """``AnswerStream`` for an event loop, see ``edgepack.AsyncStream``."""

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def __aiter__(self) -> Self: ...
    async def __anext__(self) -> Chunk: ...

    def cancel(self) -> None:
        """End the answer as soon as that can be, with the finish reason "cancelled". From any thread."""

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        ...


class Dialogue(Protocol):
    """A conversation that remembers what was said, see ``edgepack.Conversation``."""

    @property
    def messages(self) -> list[dict[str, object]]:
        """All that was said, as ``chat`` takes it."""
        ...

    @property
    def turns(self) -> int:
        """How many times something was said and answered."""
        ...

    def send(self, said: str | Mapping[str, object] | Messages, **options: Unpack[ChatOptions]) -> Result:
        """Say something and return the answer."""
        ...

    def stream(self, said: str | Mapping[str, object] | Messages, **options: Unpack[ChatOptions]) -> AnswerStream:
        """``send``, piece by piece: the turn is remembered when the ``with`` block is left."""
        ...

    async def asend(self, said: str | Mapping[str, object] | Messages, **options: Unpack[ChatOptions]) -> Result:
        """``send`` for an event loop."""
        ...

    def astream(self, said: str | Mapping[str, object] | Messages, **options: Unpack[ChatOptions]) -> AsyncAnswerStream:
        """``stream`` for an event loop."""
        ...

    def undo(self, turns: int = 1) -> None:
        """Forget the last turns, what was said and its answer."""

    def fork(self) -> Dialogue:
        """Return a conversation with the same past, which goes its own way."""
        ...


class LanguageModel(Protocol):
    """What answers, here or on a server. Close it, or use it in a ``with``. Its calls are ``edgepack.Model``'s."""

    @property
    def backend(self) -> str:
        """What runs the model: the name of a runtime, or of a server."""
        ...

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its continuation may have together, None where a server does not say."""
        ...

    @property
    def setup(self) -> Setup | Served:
        """What it was loaded as, or what is asked over the network."""
        ...

    def generate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """Continue a text and return the new part."""
        ...

    def stream(self, text: str, **options: Unpack[GenerationOptions]) -> AnswerStream:
        """Continue a text piece by piece."""
        ...

    async def agenerate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """``generate`` for an event loop."""
        ...

    def astream(self, text: str, **options: Unpack[GenerationOptions]) -> AsyncAnswerStream:
        """``stream`` for an event loop."""
        ...

    @overload
    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result: ...
    @overload
    def chat(self, *, system: str | None = None, **options: Unpack[ChatOptions]) -> Dialogue: ...
    def chat(
        self, messages: Messages | None = None, *, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Result | Dialogue:
        """Answer messages; without any, begin a conversation."""
        ...

    def stream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> AnswerStream:
        """Answer messages piece by piece."""
        ...

    async def achat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result:
        """``chat`` with messages, for an event loop."""
        ...

    def astream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> AsyncAnswerStream:
        """``stream_chat`` for an event loop."""
        ...

    def close(self) -> None:
        """Free what it holds, and end what runs. Safe to call twice, from any thread."""

    async def aclose(self) -> None:
        """``close`` for an event loop."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
