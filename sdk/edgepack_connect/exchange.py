"""One question, while it is answered: on the line's loop, from the first byte that is sent to the last that is read."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Mapping
from contextlib import AsyncExitStack
from time import monotonic
from typing import Any

from edgepack.decoding.results import Chunk, Result
from edgepack.errors import EdgepackError, EngineError, EngineTimeoutError
from edgepack.text.tools import Tools
from edgepack_connect.forms import Form
from edgepack_connect.patience import MAX_ANSWER, Patience
from edgepack_connect.told import Answer, Told
from edgepack_connect.transport import Transport


class Exchange:
    """Asks when it ``begin``s, reads when a ``piece`` is wanted. ``cancel`` may come at any time."""

    def __init__(
        self,
        transport: Transport,
        form: Form,
        path: str,
        body: Mapping[str, object],
        tools: Tools | None,
        patience: Patience,
    ) -> None:
        self._transport, self._form, self._path, self._body = transport, form, path, body
        self._answer = Answer(tools, transport.server)
        self._patience, self._end = patience, 0.0
        self._stack = AsyncExitStack()
        self._splitter = form.splitter()
        self._pieces: AsyncIterator[bytes] | None = None
        self._events: deque[bytes] = deque()
        self._size = 0
        self._waiting: asyncio.Task[Chunk | None] | None = None
        self._over = False
        self.cancelled = False

    async def begin(self) -> None:
        """Send the question, and wait for the head of its answer. Raises ``EdgepackError``."""
        self._end = monotonic() + self._patience.whole
        try:
            await self._until(self._ask(), self._patience.whole)
        except BaseException:
            await self.close()
            raise

    async def piece(self) -> Chunk | None:
        """Return the next piece, None at the end. Raises ``EdgepackError``."""
        if self._over:
            return None
        try:
            left = min(self._patience.piece, self._end - monotonic())
            chunk = await self._until(self._next(), left)
        except BaseException:
            await self.close()
            raise
        if chunk is None:
            await self.close()
        return chunk

    def result(self) -> Result:
        """Return the result of what was read. Raises ``EngineError`` and ``ToolCallError``."""
        return self._answer.result(self.cancelled)

    def cancel(self) -> None:
        """End the answer: whoever waits for a piece gets None. On the loop."""
        if not self._over:
            self.cancelled = True
            if self._waiting is not None:
                self._waiting.cancel()

    async def close(self) -> None:
        """Close the connection, so that the server stops. Safe to call twice."""
        if not self._over:
            self._over = True
            if not self._answer.ended:
                self.cancelled = True
            await self._stack.aclose()

    async def _until(self, work: Coroutine[Any, Any, Chunk | None], seconds: float) -> Chunk | None:
        """Await work, but not for longer, and not after a cancel."""
        task = asyncio.ensure_future(work)
        self._waiting = task
        if self.cancelled:
            task.cancel()
        try:
            async with asyncio.timeout(seconds):
                return await task
        except EdgepackError:
            raise
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if self.cancelled and not (current is not None and current.cancelling()):
                return None
            raise
        except TimeoutError:
            raise EngineTimeoutError(
                f"{self._transport.server} took longer than {seconds:.0f} s for the next piece of its answer.",
                hint="Ask again, or wait longer: timeout_s.",
            ) from None
        finally:
            self._waiting = None
            if not task.done():
                task.cancel()
                await asyncio.wait([task])

    async def _ask(self) -> Chunk | None:
        stream = self._transport.post(self._path, self._body, self._splitter.content_type)
        self._pieces = await self._stack.enter_async_context(stream)
        return None

    async def _next(self) -> Chunk | None:
        while True:
            while self._events:
                told = self._read(self._events.popleft())
                if told is None:
                    self._check_ended()
                    return None
                if (chunk := self._answer.take(told)) is not None:
                    return chunk
            assert self._pieces is not None  # it has begun
            data = await anext(self._pieces, None)
            if data is None:
                if rest := self._splitter.rest():
                    self._events.append(rest)
                    self._pieces = _nothing()
                    self._splitter = self._form.splitter()
                    continue
                self._check_ended()
                return None
            self._size += len(data)
            if self._size > MAX_ANSWER:
                raise EngineError(
                    f"{self._transport.server} answers with more than {MAX_ANSWER >> 20} MiB.", hint="Ask for less."
                )
            self._events.extend(self._splitter.push(data))

    def _read(self, event: bytes) -> Told | None:
        try:
            return self._form.read(event)
        except EdgepackError as error:  # which does not know whose words it read
            message = error.message.replace("The server", self._transport.server, 1)
            raise self._transport.without_key(type(error)(message, hint=error.hint)) from None

    def _check_ended(self) -> None:
        if not self._answer.ended:
            raise EngineError(
                f"{self._transport.server} ended the stream before the answer had an end.", hint="Ask again."
            )


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield b""
