"""A model on a server, with the calls of ``edgepack.Model``: the same options, results, streams and errors."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Unpack, overload
from weakref import finalize

from edgepack.decoding.options import ChatOptions, GenerationOptions
from edgepack.decoding.results import Result
from edgepack.errors import UsageError, brief
from edgepack.language_model import Served
from edgepack.text.continuing import check_last
from edgepack.text.messages import checked
from edgepack.text.messages import whole as sound
from edgepack.text.prompts import Messages
from edgepack_connect.asking import read_options, write_fields
from edgepack_connect.capabilities import Kind
from edgepack_connect.conversation import RemoteConversation
from edgepack_connect.exchange import Exchange
from edgepack_connect.line import Line
from edgepack_connect.patience import Patience
from edgepack_connect.server import Server, numbers
from edgepack_connect.stream import AsyncRemoteStream, RemoteStream, awhole, whole
from edgepack_connect.transport import Transport


class Remote:
    """Made by ``edgepack.connect``; close it, or use it in a ``with``.

    It may be used from any thread and any event loop, and asks as many questions at the same time as it is asked.
    """

    def __init__(self, line: Line, transport: Transport, server: Server, served: Served, patience: Patience) -> None:
        self._line, self._transport, self._server = line, transport, server
        self._served, self._patience = served, patience
        self._closing = finalize(self, line.close, transport.close)

    @property
    def model(self) -> str:
        """What the server calls the model."""
        return self._served.model

    @property
    def backend(self) -> str:
        """The kind of the server: "vLLM", for example."""
        return self._server.name

    @property
    def context(self) -> int | None:
        """Tokens that a prompt and its continuation may have together, None where the server does not say."""
        return self._served.context

    @property
    def setup(self) -> Served:
        """What is asked: the address, the server's kind and version, the model."""
        return self._served

    @property
    def capabilities(self) -> Mapping[str, Sequence[str]]:
        """The options that this server honours, sorted: of "chat" and of "text", which is what ``generate`` asks."""
        version = numbers(self._served.version)
        kinds: tuple[Kind, ...] = ("chat", "text")
        return {
            kind: sorted(
                name
                for name, field in self._server.fields(kind).items()
                if field.since is None or (version is not None and version >= field.since)
            )
            for kind in kinds
        }

    # A text

    def generate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """Continue a text and return the new part.

        Options as in ``edgepack.Model``; one that is left out is as the server has it. Raises ``UsageError`` for one
        that the server cannot honour, before anything is sent, ``PromptTooLongError``, ``EngineError`` where the server
        fails or cannot be reached, ``EngineTimeoutError`` where it takes too long.
        """
        return whole(self.stream(text, **options))

    def stream(self, text: str, **options: Unpack[GenerationOptions]) -> RemoteStream:
        """Continue a text piece by piece: ``with model.stream("...") as stream: for chunk in stream: ...``."""
        if not isinstance(text, str) or not text:
            raise UsageError("The prompt is empty.", hint="Pass a text.")
        return self._asking("text", sound(text, "The prompt"), options)

    async def agenerate(self, text: str, **options: Unpack[GenerationOptions]) -> Result:
        """``generate`` for an event loop. A cancelled task closes the connection, so that the server stops."""
        return await awhole(self.astream(text, **options))

    def astream(self, text: str, **options: Unpack[GenerationOptions]) -> AsyncRemoteStream:
        """``stream`` for an event loop."""
        return AsyncRemoteStream(lambda: self.stream(text, **options))

    # A conversation

    @overload
    def chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result: ...
    @overload
    def chat(self, *, system: str | None = None, **options: Unpack[ChatOptions]) -> RemoteConversation: ...
    def chat(
        self, messages: Messages | None = None, *, system: str | None = None, **options: Unpack[ChatOptions]
    ) -> Result | RemoteConversation:
        """Answer messages, each with ``role`` and ``content``, through the server's chat template.

        Without messages, begin a conversation that remembers what was said; ``system`` is its first message, and the
        options hold for all its answers. Errors as in ``generate``.
        """
        if messages is None:
            return RemoteConversation(self, system, options)
        if system is not None:
            raise UsageError("system was given beside messages.", hint="Make it the first of the messages.")
        return whole(self.stream_chat(messages, **options))

    def stream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> RemoteStream:
        """Answer messages piece by piece. Arguments and errors as in ``chat``."""
        return self.answering(messages, options)

    async def achat(self, messages: Messages, **options: Unpack[ChatOptions]) -> Result:
        """``chat`` with messages, for an event loop."""
        return await awhole(self.astream_chat(messages, **options))

    def astream_chat(self, messages: Messages, **options: Unpack[ChatOptions]) -> AsyncRemoteStream:
        """``stream_chat`` for an event loop."""
        return AsyncRemoteStream(lambda: self.stream_chat(messages, **options))

    def answering(
        self, messages: Messages, options: ChatOptions, finished: Callable[[Result], None] = lambda result: None
    ) -> RemoteStream:
        """Return the stream that answers messages; ``finished`` gets its result."""
        said = checked(messages)
        check_last(said, bool(options.get("continue_final")))
        return self._asking("chat", said, options, finished)

    def close(self) -> None:
        """End what runs, and all connections. Safe to call twice, from any thread."""
        self._closing()

    async def aclose(self) -> None:
        """``close`` for an event loop."""
        await asyncio.to_thread(self.close)

    def __repr__(self) -> str:
        of = self._served
        version = f" {of.version}" if of.version else ""
        context = f", context {of.context}" if of.context else ""
        closed = "" if self._closing.alive else ", closed"
        return f"<Remote {brief(of.model)}: {brief(of.server + version)} at {brief(of.url)}{context}{closed}>"

    def __enter__(self) -> Remote:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Remote:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def _asking(
        self,
        kind: Kind,
        asked: str | Sequence[Mapping[str, Any]],
        options: Mapping[str, Any],
        finished: Callable[[Result], None] = lambda result: None,
    ) -> RemoteStream:
        wanted, server = read_options(kind, options), self._server
        fields = write_fields(wanted, server.fields(kind), server.name, numbers(self._served.version))
        body = server.form.body(kind, self._served.model, asked, fields)
        path = server.form.paths[kind]
        exchange = Exchange(self._transport, server.form, path, body, wanted.tools, self._patience)
        return RemoteStream(self._line, exchange, lambda result: self._tell(finished, result))

    def _tell(self, finished: Callable[[Result], None], result: Result) -> None:
        finished(result)  # by way of the model, which a stream so keeps from being collected, and its line closed
