"""A generation that is read piece by piece, by a thread or by a task of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import TracebackType

from edgepack.decoding.desk import Desk, Turn
from edgepack.decoding.generation import Generation
from edgepack.decoding.results import Chunk, Result
from edgepack.errors import UsageError


class Stream:
    """A generation that is read piece by piece: a context manager that yields ``Chunk``, then has a ``result``.

    The texts of all chunks joined are the result's text (less its tool calls), and their ids its ids. The engine works
    only while a chunk is waited for. Leaving the ``with`` block early ends the generation with the finish reason
    "cancelled" and frees the model. ``cancel`` may come from any thread, everything else from one at a time.
    """

    def __init__(
        self, desk: Desk, generation: Generation, finished: Callable[[Result], None] = lambda result: None
    ) -> None:
        desk.check()
        self._desk = desk
        self._generation = generation
        self._finished = finished
        self._turn: Turn | None = None
        self._over = False
        self._result: Result | None = None

    def __enter__(self) -> Stream:
        self._check_new()
        self._begin(self._desk.enter())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Chunk:
        if self._turn is None:
            raise UsageError("A stream was read outside of a with block.", hint="with model.stream(...) as stream: ...")
        if self._over:
            raise StopIteration
        try:
            chunk = self._desk.owner.call(self._generation.step, interrupt=self.cancel)
        except BaseException:
            self._end()
            raise
        if chunk is None:
            self.close()
            raise StopIteration
        return chunk

    def cancel(self) -> None:
        """End the generation as soon as the engine can, with the finish reason "cancelled". From any thread."""
        self._generation.cancel()
        self._desk.cancel(self._turn)

    def close(self) -> None:
        """End the generation and free the model. Leaving the ``with`` block does it; safe to call twice."""
        if self._turn is not None and not self._over:
            try:
                self._result = self._generation.result()
            finally:
                self._end()
            self._finished(self._result)

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        if self._result is None:
            raise UsageError("The stream has no result.", hint="Read it to its end, or leave its with block, first.")
        return self._result

    def _check_new(self) -> None:
        if self._turn is not None:
            raise UsageError("A stream was entered twice.", hint="Ask the model for a new one.")

    def _begin(self, turn: Turn) -> None:
        self._turn = turn
        turn.end = self._stop

    def _stop(self) -> None:
        self.cancel()
        self._desk.owner.call(self.close)

    def _end(self) -> None:
        self._over = True
        if self._turn is not None:
            self._desk.leave(self._turn)


def whole(stream: Stream) -> Result:
    """Read a stream to its end, and return its result."""
    with stream:
        for _ in stream:
            pass
    return stream.result


class AsyncStream:
    """A ``Stream`` for an event loop, which goes on while the engine works: ``async with``, ``async for``, ``result``.

    What would be refused when a ``Stream`` is made is refused when the block is entered. A cancelled task stops the
    engine as leaving the block does.
    """

    def __init__(self, making: Callable[[], Awaitable[Stream]]) -> None:
        self._making = making
        self._stream: Stream | None = None

    async def __aenter__(self) -> AsyncStream:
        if self._stream is not None:
            raise UsageError("A stream was entered twice.", hint="Ask the model for a new one.")
        self._stream = await self._making()
        self._stream._begin(await self._stream._desk.aenter())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = self._entered()
        if stream._over:
            return
        # On the owner's thread, behind the step that a cancelled task left there; a second cancel must not undo it.
        await asyncio.shield(asyncio.wrap_future(stream._desk.owner.submit(stream.close)))

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Chunk:
        stream = self._entered()
        if stream._over:
            raise StopAsyncIteration
        try:
            chunk = await stream._desk.owner.acall(stream._generation.step, interrupt=stream.cancel)
        except asyncio.CancelledError:
            raise
        except BaseException:
            stream._end()
            raise
        if chunk is None:
            stream.close()
            raise StopAsyncIteration
        return chunk

    def cancel(self) -> None:
        """End the generation as soon as the engine can, with the finish reason "cancelled". From any thread."""
        self._entered().cancel()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        return self._entered().result

    def _entered(self) -> Stream:
        if self._stream is None:
            raise UsageError(
                "A stream was read outside of a with block.", hint="async with model.astream(...) as stream: ..."
            )
        return self._stream


async def awhole(stream: AsyncStream) -> Result:
    """``whole`` for an event loop."""
    async with stream:
        async for _ in stream:
            pass
    return stream.result
