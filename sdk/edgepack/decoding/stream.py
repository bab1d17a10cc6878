"""A generation that is read piece by piece, by a thread or by a task of an event loop."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from types import FrameType, TracebackType

from edgepack.decoding.desk import Desk
from edgepack.decoding.generation import Generation
from edgepack.decoding.owner import Bell, Outcome
from edgepack.decoding.results import Chunk, Result
from edgepack.decoding.seat import Ask, Logits, Seat
from edgepack.decoding.turn import Turn
from edgepack.errors import Cancelled, UsageError


class Stream:
    """A generation that is read piece by piece: a context manager that yields ``Chunk``, then has a ``result``.

    The texts of all chunks joined are the result's text (less its tool calls), and their ids its ids. The engine works
    only while a chunk is waited for, or another request is kept waiting by a stream that nobody reads; a model of
    several sequences runs ahead of the reader. Leaving the ``with`` block early ends the generation with the finish
    reason "cancelled" and frees the model; so does the end of the stream itself, where its block was never left.
    ``cancel`` may come from any thread, everything else from one at a time.
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
        self._pending: Ask | None = None  # the step that it needs to go on
        self._asked: Outcome[None] | None = None  # of who waits for a piece
        self._whole = False  # who waits does so for the end
        self._done = False  # the end has been made, read or not
        self._read: list[Chunk] = []
        self._dropped = False  # what is ahead is to go
        self._cut = False  # it went
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
            self._wait()
            chunk = _piece(self._take())
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
        if self._turn is not None:
            self._desk.owner.wake()

    def close(self) -> None:
        """End the generation and free the model. Leaving the ``with`` block does it; safe to call twice."""
        if self._turn is not None and not self._over:
            try:
                if not self._done and not self._desk.owner.is_here:
                    return  # a fork has the stream, but not the engine
                result = self._conclude() if self._done else self._desk.owner.call(self._conclude, self.cancel)
                if self._result is None:  # as it is where the desk closed it meanwhile
                    self._keep(result)
            finally:
                self._end()

    @property
    def result(self) -> Result:
        """The result. Raises ``UsageError`` while the stream goes on, and where it ended in an error."""
        if self._result is None:
            raise UsageError("The stream has no result.", hint="Read it to its end, or leave its with block, first.")
        return self._result

    # As the desk's holder, on the owner's thread

    @property
    def _prompt(self) -> Sequence[int]:
        return self._generation.prompt

    def _start(self, seat: Seat) -> None:
        self._starting(self)
        self._generation.begin(seat)

    def _ask(self, unread: bool) -> Ask | None:
        if self._pending is not None and self._generation.cancelled:
            self._tell(Cancelled("The stream was cancelled."))
        while self._pending is None and not self._done and self._goes_on(unread):
            self._advance(None)
        return self._pending if self._goes_on(unread) else None

    def _goes_on(self, unread: bool) -> bool:
        """Whether it is to go on: somebody waits, or nobody has to."""
        return unread or self._asked is not None or self._desk.parallel

    def _tell(self, given: Logits | BaseException) -> None:
        self._pending = None
        self._advance(given)

    def _advance(self, given: Logits | BaseException | None) -> None:
        try:
            found = self._generation.go_on(given)
        except BaseException as error:
            self._ahead.append(error)
            self._done = True
        else:
            if isinstance(found, Ask):
                self._pending = found
                return
            self._ahead.append(found)
            self._done = found is None
        if not self._whole or self._done:
            self._answer()

    def _answer(self) -> None:
        """Tell who waits."""
        asked, self._asked = self._asked, None
        if asked is not None:
            asked.settle(lambda: None)

    def _stop(self) -> None:
        if not self._done:
            self.cancel()
            self._desk.owner.call(self.close)
            self._answer()

    def _conclude(self) -> Result:
        unread = self._cut or self._dropped or any(isinstance(piece, Chunk) for piece in tuple(self._ahead))
        return self._generation.result(self._read, cut=unread)

    # On the reader's

    @property
    def _ready(self) -> bool:
        """Whether there is what who reads waits for: a piece to take, or the end."""
        if self._dropped:
            self._ahead.clear()
            self._dropped, self._cut = False, True
        return (bool(self._ahead) and not self._whole) or self._done or self._over

    def _asking(self, told: Callable[[], object] | None = None) -> Outcome[None] | None:
        """Ask for a piece, and return what is settled when there is one, or the end; None where there is already."""
        if self._ready:
            return None
        self._desk.owner.check()
        outcome: Outcome[None] = Outcome(told)
        self._asked = outcome
        if self._ready:  # it came meanwhile
            self._asked = None
            return None
        self._desk.wake()
        return outcome

    def _wait(self) -> None:
        """Wait for a piece. Where that is interrupted, the interruption goes on as soon as the engine has stopped."""
        outcome = self._asking()
        if outcome is not None:
            try:
                while self._desk.owner.is_current and not outcome.known:
                    self._desk.wake()
                outcome.wait()
            except BaseException:
                self.cancel()
                outcome.wait()
                raise

    async def _await(self) -> None:
        """``_wait``, while the event loop goes on. A task that is cancelled again waits no longer for the end."""
        bell = Bell()
        outcome = self._asking(bell.ring)
        if outcome is not None:
            try:
                await asyncio.shield(bell.rung)
            except BaseException as error:
                self.cancel()
                if isinstance(error, asyncio.CancelledError):
                    await bell.until_known(outcome)
                raise

    def _take(self) -> Chunk | BaseException | None:
        if self._turn is not None:
            self._turn.touch()
        piece = self._ahead.popleft() if self._ahead else None
        if isinstance(piece, Chunk):
            self._read.append(piece)
        return piece

    def _read_all(self) -> Result:
        """Read what is there, to its end, and return the result."""
        while _piece(self._take()) is not None:
            pass
        self._keep(self._conclude())
        return self.result

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
    """Wait for a stream's end, which wakes its reader once, and return its result."""
    stream._check_new()
    stream._whole = True
    try:
        stream._turn = stream._desk.enter(stream)
        stream._wait()
        return stream._read_all()
    finally:
        stream._end()


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
            await stream._await()
            chunk = _piece(stream._take())
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
    made._whole = True
    try:
        made._turn = await made._desk.aenter(made)
        await made._await()
        return made._read_all()
    finally:
        made._end()
