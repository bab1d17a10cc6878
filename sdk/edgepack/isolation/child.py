"""The process of an isolated engine: it opens one session and serves it until its parent goes.

Run as ``python -m edgepack.isolation.child`` with a connected socket as standard input; see
``edgepack.isolation.wire``. The main thread owns the session. A second thread listens, so that a cancel and the end of
the parent are noticed in the middle of a step.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, Thread, Timer
from time import sleep
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack import runtime
from edgepack.errors import Cancelled, EngineError
from edgepack.isolation import wire
from edgepack.runtime import Hidden, Sequences, Session, Snapshots, Step

Inbox = SimpleQueue[tuple[wire.Request, wire.Payload] | None]

_AGAIN_S: Final = 0.01
_LAST_WORDS_S: Final = 2.0
_PATIENCE_S: Final = 2.0


class Engine:
    """The session of this process, and the number of the forward that runs in it."""

    def __init__(self) -> None:
        self._session: Session | None = None
        self._columns = 0
        self._lock = Lock()
        self._running: int | None = None
        self._cancelled = -1

    def answer(self, request: wire.Request, payload: wire.Payload) -> tuple[wire.Answer, wire.Payload]:
        """Do what is asked, and return the answer with its payload."""
        try:
            return self._do(request, payload)
        except Exception as error:
            return wire.Answer(wire.failure(error)), b""

    def cancel(self, number: int) -> None:
        """Stop all forwards up to that number, the step that runs and those that have not begun."""
        with self._lock:
            self._cancelled = max(self._cancelled, number)
            if self._session is None or self._running is None or self._running > number:
                return
            self._session.cancel()
        # A session ignores a cancel before its forward has begun, and this one may have come a moment too early.
        again = Timer(_AGAIN_S, self.cancel, [number])
        again.daemon = True
        again.start()

    def close(self) -> None:
        """End the session."""
        if self._session is not None:
            self._session.close()

    def _do(self, request: wire.Request, payload: wire.Payload) -> tuple[wire.Answer, wire.Payload]:
        if isinstance(request, wire.Open):
            opened = runtime.find(request.runtime).open(
                Path(os.fsdecode(request.variant)), request.decoder, request.options
            )
            self._session, self._columns = opened, request.decoder.outputs
            keeps, embeds = isinstance(opened, Snapshots), isinstance(opened, Hidden)
            count = opened.sequences if isinstance(opened, Sequences) else 1
            return wire.Answer(device=opened.device, snapshots=keeps, hidden=embeds, sequences=count), b""
        session = self._session
        assert session is not None  # the parent opens first
        if isinstance(request, wire.Forward):
            return wire.Answer(), self._forward(session, request, np.frombuffer(payload, np.int32).tolist())
        if isinstance(request, wire.Hidden):
            return wire.Answer(), self._hidden(session, request, np.frombuffer(payload, np.int32).tolist())
        if isinstance(request, wire.Batch):
            return wire.Answer(), self._batch(session, request, np.frombuffer(payload, np.int32).tolist())
        if isinstance(request, wire.Rewind):
            return wire.Answer(length=_rewound(session, request.sequence, request.length)), b""
        if isinstance(request, wire.Copy):
            assert isinstance(session, Sequences)  # it said so when it was opened
            return wire.Answer(length=session.copy(request.source, request.target, request.length)), b""
        assert isinstance(session, Snapshots)  # it said so when it was opened
        if isinstance(request, wire.Snapshot):
            return wire.Answer(), session.snapshot()
        session.restore(bytes(payload))
        return wire.Answer(length=session.length), b""

    def _forward(self, session: Session, request: wire.Forward, ids: list[int]) -> memoryview:
        with self._step(request):
            logits = (session.forward_all if request.every else session.forward)(ids)
        return _sent(logits, (len(ids), self._columns) if request.every else (self._columns,))

    def _hidden(self, session: Session, request: wire.Hidden, ids: list[int]) -> memoryview:
        assert isinstance(session, Hidden)  # it said so when it was opened
        with self._step(request):
            states = session.hidden(ids, request.first)
        return _sent(states, (len(ids) - request.first, self._columns))

    def _batch(self, session: Session, request: wire.Batch, ids: list[int]) -> bytes:
        assert isinstance(session, Sequences)  # it said so when it was opened
        steps, begin = list[Step](), 0
        for part in request.parts:
            steps.append(Step(part.sequence, ids[begin : begin + part.count], part.every))
            begin += part.count
        with self._step(request):
            found = session.forward_batch(steps)
        shapes = [(part.count, self._columns) if part.every else (self._columns,) for part in request.parts]
        return b"".join(_sent(logits, shape) for logits, shape in zip(found, shapes, strict=True))

    @contextmanager
    def _step(self, request: wire.Step) -> Iterator[None]:
        with self._lock:
            if request.number <= self._cancelled:
                raise Cancelled("The forward was cancelled before it began.")
            self._running = request.number
        # The parent ends an engine that hangs. Should the parent be gone too, and the engine keep the interpreter's
        # lock so that no thread here can notice, the kernel does it: the alarm's default is to end the process.
        signal.setitimer(signal.ITIMER_REAL, request.limit_s + _PATIENCE_S)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            with self._lock:
                self._running = None


def _rewound(session: Session, sequence: int, length: int) -> int:
    """Return how many tokens a sequence holds after a rewind to a length that it may be short of."""
    if not isinstance(session, Sequences):
        return session.rewind(min(length, session.length))
    return session.rewind_sequence(sequence, min(length, session.length_of(sequence)))


def _sent(numbers: NDArray[np.float32], shape: tuple[int, ...]) -> memoryview:
    if numbers.shape != shape:
        raise EngineError(f"The runtime returned numbers of the shape {numbers.shape} instead of {shape}.")
    return np.ascontiguousarray(numbers, np.float32).data.cast("B")


def main() -> None:
    """Serve the parent at the other end of standard input."""
    channel = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)  # an engine that reads its input must not take the parent's words
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    engine, inbox = Engine(), Inbox()
    Thread(target=_listen, args=(channel, engine, inbox), daemon=True).start()
    with suppress(OSError):  # the parent is gone
        while (received := inbox.get()) is not None:
            answer, payload = engine.answer(*received)
            wire.send(channel, answer, payload)
    engine.close()


def _listen(channel: socket.socket, engine: Engine, inbox: Inbox) -> None:
    decoder = msgspec.msgpack.Decoder(wire.Request)
    with suppress(OSError, EOFError):
        while True:
            head, payload = wire.receive(channel)
            request = decoder.decode(head)
            if isinstance(request, wire.Cancel):
                engine.cancel(request.number)
            else:
                inbox.put((request, payload))
    inbox.put(None)
    engine.cancel(sys.maxsize)
    sleep(_LAST_WORDS_S)
    os._exit(1)  # the engine does not stop


if __name__ == "__main__":
    main()
