"""A generation that is read piece by piece, by a thread or by a task of an event loop."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable
from types import FrameType, TracebackType

from edgepack.decoding.desk import Desk
from edgepack.decoding.generation import Generation
from edgepack.decoding.results import Chunk, Result
from edgepack.decoding.turn import Turn
from edgepack.errors import UsageError


class Stream:
    """A generation that is read piece by piece: a context manager that yields ``Chunk``, then has a ``result``.

    The texts of all chunks joined are the result's text (less its tool calls), and their ids its ids. The engine works
    only while a chunk is waited for, or another request is kept waiting by a stream that nobody reads. Leaving the
    ``with`` block early ends the generation with the finish reason "cancelled" and frees the model; so does the end
    of the stream itself, where its block was never left. ``cancel`` may come from any thread, everything else from one
    at a time.
    """

    def __init__(
        self,
        desk: Desk,
        generation: Generation,
        starting: Callable[[Stream], None] = lambda stream: None,
        finished: Callable[[Result], None] = lambda result: None,
    ) -> None:
        """``starting`` may refuse, on the owner's thread, before the first step; ``finished`` gets the result."""
        desk.check()
        self._caller: FrameType | None = None
        self._over = False
        self._desk = desk
        self._generation = generation
        self._starting = starting
        self._finished = finished
        self._turn: Turn | None = None
        self._ahead: deque[Chunk | BaseException | None] = deque()  # not read yet; None and an error are the end
        self._begun = False
        self._done = False  # the end has been made, read or not
        self._read: list[Chunk] = []
        self._dropped = False
        self._result: Result | None = None

    def __enter__(self) -> Stream:
        self._check_new()
        self._caller = sys._getframe(1)
        try:
            self._turn = self._desk.enter(self)
        except UsageError:  # refused, so that it may be entered later
            self._caller = None
            raise
        except BaseException:
            self._end()
            raise
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
            ready = self._ready
            chunk = _piece(self._take() if ready else self._desk.owner.call(self._next, interrupt=self.cancel))
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
        if self._ahead:
            self._dropped = True  # whoever reads clears it: between two steps of theirs, it would be gone under them

    def close(self) -> None:
        """End the generation and free the model. Leaving the ``with`` block does it; safe to call twice."""
        if self._turn is not None and not self._over:
            try:
                if not self._done and not self._desk.owner.is_here:
                    return  # a fork has the stream, but not the engine
                result = self._conclude() if self._done else self._desk.owner.call(self._conclude, self.cancel)
                self._keep(result)
            finally:
                self._end()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        if self._result is None:
            raise UsageError("The stream has no result.", hint="Read it to its end, or leave its with block, first.")
        return self._result

    # As the desk's holder

    def _start(self) -> None:
        self._starting(self)
        self._begun = True

    def _go_on(self) -> bool:
        if not self._done:
            self._advance()
        return not self._done

    def _stop(self) -> None:
        self.cancel()
        self._desk.owner.call(self.close)

    # On the owner's thread, where no step runs meanwhile

    def _advance(self) -> None:
        try:
            piece = self._generation.step()
            self._ahead.append(piece)
            self._done = piece is None
        except BaseException as error:
            self._ahead.append(error)
            self._done = True

    def _next(self) -> Chunk | BaseException | None:
        if self._dropped:
            self._ahead.clear()
        if not self._ahead:
            self._advance()
        return self._take()

    def _conclude(self) -> Result:
        unread = self._dropped or any(isinstance(piece, Chunk) for piece in self._ahead)
        return self._generation.result(self._read, cut=unread)

    def _read_on(self) -> bool:
        if not self._begun:
            self._start()
        chunk = self._generation.step()
        if chunk is not None:
            self._read.append(chunk)
        return chunk is not None

    # On the reader's

    @property
    def _ready(self) -> bool:
        return bool(self._ahead) and not self._dropped

    def _take(self) -> Chunk | BaseException | None:
        if self._turn is not None:
            self._turn.touch()
        piece = self._ahead.popleft()
        if isinstance(piece, Chunk):
            self._read.append(piece)
        return piece

    def _check_new(self) -> None:
        if self._caller is not None or self._turn is not None or self._over:
            raise UsageError("A stream was entered twice.", hint="Ask the model for a new one.")

    def _keep(self, result: Result) -> None:
        self._result = result
        self._finished(result)

    def _end(self) -> None:
        self._over = True
        self._caller = None
        if self._turn is not None:
            self._generation.cancel()
            self._desk.cancel(self._turn)
            self._desk.leave(self._turn)


def _piece(piece: Chunk | BaseException | None) -> Chunk | None:
    if not isinstance(piece, BaseException):
        return piece
    try:
        raise piece
    finally:
        del piece  # its traceback has this frame


def whole(stream: Stream) -> Result:
    """Read a stream to its end on the owner's thread alone, and return its result."""
    stream._check_new()
    try:
        stream._keep(stream._desk.call(stream._conclude, stream._read_on, stream._generation.cancel))
    finally:
        stream._end()
    return stream.result


class AsyncStream:
    """A ``Stream`` for an event loop, which goes on while the engine works: ``async with``, ``async for``, ``result``.

    What would be refused when a ``Stream`` is made is refused when the block is entered. A cancelled task stops the
    engine as leaving the block does.
    """

    def __init__(self, making: Callable[[], Awaitable[Stream]]) -> None:
        self._making = making
        self._entering = False
        self._stream: Stream | None = None

    async def __aenter__(self) -> AsyncStream:
        caller = sys._getframe(1)
        stream = await self._made()
        stream._caller = caller
        try:
            stream._turn = await stream._desk.aenter(stream)
        except BaseException:
            stream._end()
            raise
        self._stream = stream
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stream = self._entered()
        if stream._done:
            stream.close()
        if stream._over:
            return
        # On the owner's thread, behind the step that a cancelled task left there; a second cancel does not undo it.
        await stream._desk.owner.acall(stream.close)

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Chunk:
        stream = self._entered()
        if stream._over:
            raise StopAsyncIteration
        try:
            ready = stream._ready
            chunk = _piece(
                stream._take() if ready else await stream._desk.owner.acall(stream._next, interrupt=stream.cancel)
            )
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

    async def _made(self) -> Stream:
        if self._entering:
            raise UsageError("A stream was entered twice.", hint="Ask the model for a new one.")
        self._entering = True
        return await self._making()

    def _entered(self) -> Stream:
        if self._stream is None:
            raise UsageError(
                "A stream was read outside of a with block.", hint="async with model.astream(...) as stream: ..."
            )
        return self._stream


async def awhole(stream: AsyncStream) -> Result:
    """``whole`` for an event loop."""
    made = await stream._made()
    try:
        made._keep(await made._desk.acall(made._conclude, made._read_on, made._generation.cancel))
    finally:
        made._end()
    return made.result
