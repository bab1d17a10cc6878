"""An answer of a server that is read piece by piece, by a thread or by a task of an event loop.

The server is asked when the ``with`` block is entered, and read while a piece is waited for: whoever reads slowly lets
the connection fill, and the server wait.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType

from edgepack.decoding.results import Chunk, Result
from edgepack.errors import UsageError
from edgepack_connect.exchange import Exchange
from edgepack_connect.line import Line

_TWICE = "A stream was entered twice."


class RemoteStream:
    """A context manager that yields ``Chunk``, then has a ``result``: as ``edgepack.Stream``.

    The texts of all chunks joined are the result's text. Leaving the ``with`` block early closes the connection, so
    that the server stops, and the finish reason is "cancelled". ``cancel`` may come from any thread, everything else
    from one at a time.
    """

    def __init__(
        self, line: Line, exchange: Exchange, finished: Callable[[Result], None] = lambda result: None
    ) -> None:
        """``finished`` gets the result, and keeps alive what the line belongs to."""
        self._line, self._exchange, self._finished = line, exchange, finished
        self._entered = self._over = False
        self._result: Result | None = None

    def __enter__(self) -> RemoteStream:
        self._enter()
        try:
            self._line.call(self._exchange.begin)
        except BaseException:
            self._over = True
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> RemoteStream:
        return self

    def __next__(self) -> Chunk:
        self._check_entered("with model.stream(...) as stream: ...")
        if self._over:
            raise StopIteration
        try:
            chunk = self._line.call(self._exchange.piece)
        except BaseException:
            self._over = True
            self._line.soon(self._exchange.cancel)
            raise
        if chunk is None:
            self._conclude()
            raise StopIteration
        return chunk

    def cancel(self) -> None:
        """End the answer as soon as that can be, with the finish reason "cancelled". From any thread."""
        self._line.soon(self._exchange.cancel)

    def close(self) -> None:
        """End the answer, and close its connection. Leaving the ``with`` block does it; safe to call twice."""
        if self._entered and not self._over:
            try:
                self._line.call(self._exchange.close)
            except BaseException:
                self._over = True
                raise
            self._conclude()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        if self._result is None:
            raise UsageError("The stream has no result.", hint="Read it to its end, or leave its with block, first.")
        return self._result

    def _enter(self) -> None:
        if self._entered:
            raise UsageError(_TWICE, hint="Ask the model for a new one.")
        self._entered = True

    def _check_entered(self, hint: str) -> None:
        if not self._entered:
            raise UsageError("A stream was read outside of a with block.", hint=hint)

    def _conclude(self) -> None:
        self._over = True
        self._result = self._exchange.result()
        self._finished(self._result)


def whole(stream: RemoteStream) -> Result:
    """Read a stream to its end, and return its result."""
    with stream:
        for _ in stream:
            pass
    return stream.result


class AsyncRemoteStream:
    """``RemoteStream`` for an event loop: ``async with``, ``async for``, ``result``; as ``edgepack.AsyncStream``.

    What would be refused when a ``RemoteStream`` is made is refused when the block is entered.
    """

    def __init__(self, making: Callable[[], RemoteStream]) -> None:
        self._making = making
        self._stream: RemoteStream | None = None

    async def __aenter__(self) -> AsyncRemoteStream:
        if self._stream is not None:
            raise UsageError(_TWICE, hint="Ask the model for a new one.")
        self._stream = stream = self._making()
        stream._enter()
        try:
            await stream._line.acall(stream._exchange.begin)
        except BaseException:
            stream._over = True
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = self._begun()
        if not stream._over:
            try:
                await stream._line.acall(stream._exchange.close)
            except BaseException:
                stream._over = True
                stream._line.soon(stream._exchange.cancel)
                raise
            stream._conclude()

    def __aiter__(self) -> AsyncRemoteStream:
        return self

    async def __anext__(self) -> Chunk:
        stream = self._begun()
        if stream._over:
            raise StopAsyncIteration
        try:
            chunk = await stream._line.acall(stream._exchange.piece)
        except BaseException:
            stream._over = True
            stream._line.soon(stream._exchange.cancel)
            raise
        if chunk is None:
            stream._conclude()
            raise StopAsyncIteration
        return chunk

    def cancel(self) -> None:
        """End the answer as soon as that can be, with the finish reason "cancelled". From any thread."""
        self._begun().cancel()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        return self._begun().result

    def _begun(self) -> RemoteStream:
        if self._stream is None:
            raise UsageError(
                "A stream was read outside of a with block.", hint="async with model.astream(...) as stream: ..."
            )
        return self._stream


async def awhole(stream: AsyncRemoteStream) -> Result:
    """``whole`` for an event loop."""
    async with stream:
        async for _ in stream:
            pass
    return stream.result
