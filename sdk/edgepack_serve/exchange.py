"""One request and its answer over HTTP, whatever the dialect: read, admitted, answered, cut where it must be."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from contextlib import aclosing
from time import time
from uuid import uuid4

import msgspec
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from edgepack import EdgepackError, Model, Result
from edgepack_serve import answering
from edgepack_serve.asked import Asked, Dialect, Head, Writer
from edgepack_serve.guard import bodies
from edgepack_serve.hosting.host import Host
from edgepack_serve.refusals import RefusedError, status_of

_ALIVE_S = 15.0


class Door:
    """A dialect as an ASGI application. What comes from the client is refused in the dialect's own form."""

    def __init__(self, dialect: Dialect, host: Host, limits: bodies.Limits, timeout_s: float, slow_s: float) -> None:
        self._dialect, self._host, self._limits = dialect, host, limits
        self._timeout_s, self._slow_s = timeout_s, slow_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or end without an answer where its client has gone."""
        reply = Reply(send, self._slow_s)
        try:
            asked = self._dialect.read(await bodies.read(Headers(scope=scope), receive, self._limits))
            work = asyncio.create_task(self._answered(asked, reply))
            gone = asyncio.create_task(_gone(receive))
            try:
                await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                gone.cancel()
                if not work.done():
                    work.cancel()
                    await asyncio.wait({work})
            if not work.cancelled():
                work.result()
        except bodies.GoneError:
            return
        except EdgepackError as error:
            status = status_of(error)
            more = error.headers if isinstance(error, RefusedError) else {}
            await reply.json(self._dialect.fault(error, status), status, more)

    async def _answered(self, asked: Asked, reply: Reply) -> None:
        try:
            async with asyncio.timeout(self._timeout_s), self._host.lease(asked.model) as model:
                head = Head(uuid4().hex, int(time()), f"{model.bundle_id[:12]}-{model.variant.id}")
                if asked.stream:
                    await self._streamed(model, asked, self._dialect.writer(asked, head), reply)
                else:
                    results = await answering.whole(model, asked)
                    self._note(asked, results)
                    await reply.json(self._dialect.whole(asked, results, head))
        except TimeoutError:
            raise RefusedError(504, f"The answer took longer than {self._timeout_s:g} s.", code="timeout") from None

    async def _streamed(self, model: Model, asked: Asked, writer: Writer, reply: Reply) -> None:
        results: dict[int, Result] = {}
        async with aclosing(answering.pieces(model, asked)) as pieces:  # type: ignore[type-var]
            async for choice, piece in pieces:
                if not reply.begun:
                    await reply.begin(writer)
                if isinstance(piece, Result):
                    results[choice] = piece
                    await reply.write(writer.end(choice, piece))
                else:
                    await reply.write(writer.piece(choice, piece))
        whole = [results[each] for each in range(asked.n)]
        self._note(asked, whole)
        await reply.write(writer.close(whole), last=True)

    def _note(self, asked: Asked, results: list[Result]) -> None:
        hosted = self._host.find(asked.model)
        for result in results:
            hosted.told(result)


class Reply:
    """The answer's way to the client. A client that takes nothing for ``slow_s`` seconds is given up."""

    def __init__(self, send: Send, slow_s: float) -> None:
        self._send, self._slow_s = send, slow_s
        self.begun = False
        self._writer: Writer | None = None

    async def json(
        self, body: Mapping[str, object], status: int = 200, headers: Mapping[str, str] | None = None
    ) -> None:
        """Send a whole answer; after the beginning of a stream, what is left is its end."""
        data = msgspec.json.encode(body)
        await self._head(status, "application/json", {"Content-Length": str(len(data)), **(headers or {})})
        await self._send({"type": "http.response.body", "body": data})

    async def begin(self, writer: Writer) -> None:
        """Send the head of a stream and what stands before its pieces."""
        self._writer = writer
        await self._head(200, writer.content_type, {"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        await self.write(writer.begin())

    async def write(self, pieces: Iterable[bytes], last: bool = False) -> None:
        """Send a part of a stream."""
        data = b"".join(pieces)
        if data or last:
            await self._send({"type": "http.response.body", "body": data, "more_body": not last})

    async def _head(self, status: int, kind: str, headers: Mapping[str, str]) -> None:
        self.begun = True
        given = {"Content-Type": kind, **headers}
        lines = [(name.lower().encode(), value.encode()) for name, value in given.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": lines})


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
