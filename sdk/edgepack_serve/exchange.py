"""One request and its answer over HTTP, whatever the dialect: read, admitted, answered, cut where it must be."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic, time
from traceback import format_tb
from typing import Any
from uuid import uuid4

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from edgepack import EdgepackError, Model, Result, ToolCallError
from edgepack_serve import answering
from edgepack_serve.asked import Asked, Body, Dialect, Head, Question, Writer
from edgepack_serve.guard import bodies
from edgepack_serve.hosting.host import Host
from edgepack_serve.records import Record, log
from edgepack_serve.refusals import RefusedError, headers_of, status_of
from edgepack_serve.underway import Underway


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every request is held to. A client that takes nothing for ``slow_s`` is given up; one that waits for the
    next piece of a stream hears every ``alive_s`` that there is still somebody."""

    limits: bodies.Limits = field(default_factory=bodies.Limits)
    slow_s: float = 30.0
    alive_s: float = 15.0


class SlowError(Exception):
    """The client takes nothing."""


class Door:
    """A dialect as an ASGI application. What comes from the client is refused in the dialect's own form."""

    def __init__(self, dialect: Dialect, host: Host, underway: Underway, terms: Terms) -> None:
        self.dialect = dialect
        self._host, self._underway, self._terms = host, underway, terms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or end without an answer where its client has gone."""
        record, reply = Record.of(scope), Reply(send, self._terms)

        async def work(body: Body) -> None:
            await self._answered(self.dialect.read(body), reply, record)

        await exchanged(scope, receive, reply, self._terms, self._underway, work, self.dialect.fault)

    async def _answered(self, asked: Asked, reply: Reply, record: Record) -> None:
        async with self._host.lease(asked.model, asked.keep_s) as model:
            record.model, record.stream = asked.model, asked.stream
            head = Head(uuid4().hex, int(time()), f"{model.bundle_id[:12]}-{model.variant.id}")
            if asked.stream:
                results = await self._streamed(model, asked, self.dialect.writer(asked, head), reply)
            else:
                results = await answering.whole(model, asked)
            record.told(results)
            for result in results:
                self._host.find(asked.model).told(result)
        # The model is free before the last bytes are taken.
        if not asked.stream:
            await reply.json(self.dialect.whole(asked, results, head))

    async def _streamed(self, model: Model, asked: Asked, writer: Writer, reply: Reply) -> list[Result]:
        results: dict[int, Result] = {}
        async with reply.alive(writer), aclosing(answering.pieces(model, asked)) as pieces:
            async for choice, piece in pieces:
                if isinstance(piece, Result):
                    results[choice] = piece
                    await reply.write(writer.end(choice, piece))
                else:
                    await reply.write(writer.piece(choice, piece))
        whole = [results[each] for each in range(asked.n)]
        await reply.write(writer.close(whole), last=True)
        return whole


class QuestionDoor:
    """A ``Question`` as an ASGI application."""

    def __init__(self, question: Question[Any], host: Host, underway: Underway, terms: Terms) -> None:
        self.question = question
        self._host, self._underway, self._terms = host, underway, terms

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        record, reply = Record.of(scope), Reply(send, self._terms)

        async def work(body: Body) -> None:
            name, asked = self.question.read(body)
            async with self._host.lease(name) as model:
                record.model = name
                answer = await self.question.answer(model, asked)
            await reply.json(answer)

        await exchanged(scope, receive, reply, self._terms, self._underway, work, self.question.fault)


async def exchanged(
    scope: Scope,
    receive: Receive,
    reply: Reply,
    terms: Terms,
    underway: Underway,
    work: Callable[[Body], Coroutine[Any, Any, None]],
    fault: Callable[[EdgepackError, int], Mapping[str, object]],
) -> None:
    """Read a request's body and do the work that it asks for, which replies; ``fault`` is the body of an error.

    Whatever goes wrong ends here: as an answer where there is still a client, else without one.
    """
    record = Record.of(scope)
    try:
        try:
            body = await bodies.read(Headers(scope=scope), receive, terms.limits)
            await underway.do(receive, work(body))
        except EdgepackError as error:
            await _failed(error, reply, record, fault)
        except (bodies.GoneError, SlowError):
            raise
        except Exception as error:
            # Without its message, in which may be what was said.
            trace = "".join(format_tb(error.__traceback__))
            log.error("fault", extra={"fields": {"error": type(error).__name__, "traceback": trace}})
            internal = RefusedError(500, f"internal error: {type(error).__name__}.", hint="The server's log has more.")
            await _failed(internal, reply, record, fault)
    except bodies.GoneError:
        record.outcome = "gone"
    except SlowError:
        record.outcome = "slow"
        scope["state"].get("abort", lambda: None)()


async def _failed(
    error: EdgepackError, reply: Reply, record: Record, fault: Callable[[EdgepackError, int], Mapping[str, object]]
) -> None:
    status, record.error = status_of(error), type(error).__name__
    if status >= 500 and not isinstance(error, ToolCallError):  # which quotes the answer
        log.error("failed", extra={"fields": {"door": record.door, "error": str(error)}})
    if reply.begun:
        record.outcome = "cut"
        await reply.cut(error)
        return
    await reply.json(fault(error, status), status, headers_of(error))


class Reply:
    """The answer's way to the client."""

    def __init__(self, send: Send, terms: Terms) -> None:
        self._send, self._terms = send, terms
        self._writer: Writer | None = None
        self._one = asyncio.Lock()
        self._ended = False
        self._last = monotonic()
        self.begun = False
        """Whether a stream's head went out: from then on what fails is told in the stream."""

    async def json(
        self, body: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer. Raises ``SlowError``."""
        data = msgspec.json.encode(body)
        await self._head(status, "application/json", {"Content-Length": str(len(data)), **(headers or {})})
        await self._out({"type": "http.response.body", "body": data})

    @asynccontextmanager
    async def alive(self, writer: Writer) -> AsyncIterator[None]:
        """Stream by this writer inside the block. The head goes out with the first piece, so that what is refused
        before has a status of its own; or after a while, since a client waits for no connection without a word."""
        self._writer = writer
        ticking = asyncio.create_task(self._tick(writer))
        try:
            yield
        finally:
            ticking.cancel()

    async def write(self, pieces: Iterable[bytes], last: bool = False) -> None:
        """Send a part of the stream. Raises ``SlowError``."""
        data, writer = b"", self._writer
        assert writer is not None
        async with self._one:
            if not self.begun:
                self.begun = True
                await self._head(200, writer.content_type, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
                data = b"".join(writer.begin())  # before the piece is made: a writer may count what it writes
            data += b"".join(pieces)
            if (data or last) and not self._ended:
                self._ended = last
                await self._out({"type": "http.response.body", "body": data, "more_body": not last})
        # Pieces that are ready come one after the other without a wait: others go on in between, and it is heard that
        # the client has gone.
        await asyncio.sleep(0)

    async def cut(self, error: EdgepackError) -> None:
        """End a stream by an error."""
        if self._writer is not None:
            await self.write(self._writer.fault(error), last=True)

    async def _tick(self, writer: Writer) -> None:
        while True:
            await asyncio.sleep(self._terms.alive_s)
            if monotonic() - self._last >= self._terms.alive_s and (word := b"".join(writer.alive())):
                with suppress(SlowError):  # whoever writes the next piece meets it too
                    await self.write([word])

    async def _head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        given = {"Content-Type": kind, **headers}
        lines = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await self._out({"type": "http.response.start", "status": status, "headers": lines})

    async def _out(self, message: dict[str, Any]) -> None:
        self._last = monotonic()
        try:
            async with asyncio.timeout(self._terms.slow_s):
                await self._send(message)
        except TimeoutError:
            raise SlowError from None
