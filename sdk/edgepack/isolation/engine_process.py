"""The process of an isolated engine, as its parent sees it: started, asked, given up, and never left behind."""

from __future__ import annotations

import os
import socket
import subprocess
import weakref
from contextlib import suppress
from dataclasses import dataclass
from threading import RLock
from typing import Final

import msgspec

from edgepack.errors import EngineCrashedError, EngineError, EngineTimeoutError, UsageError
from edgepack.isolation import process, wire

_LAST_WORDS_S: Final = 0.5
_END_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds that an answer may take: a step's, and those of the load and of the first step after it."""

    step_s: float
    start_s: float

    def __post_init__(self) -> None:
        for name, value in (("timeout_s", self.step_s), ("start_timeout_s", self.start_s)):
            if not 0 < value < 1e6:
                raise UsageError(f"{name} is {value!r}.", hint="It is a number of seconds above 0.")


class EngineProcess:
    """The process with an open session, from its start to its end. After an error of its own it is not ``alive``."""

    def __init__(self, job: wire.Open, limits: Limits) -> None:
        self._name = f"The process of {job.runtime} on {os.fsdecode(job.variant)}"
        self._limits = limits
        self._open = self._warm = False
        self._sending = RLock()  # re-entrant, because a signal handler may cancel
        self._channel, theirs = socket.socketpair()
        try:
            with theirs:
                self._process = process.start(
                    "edgepack.isolation.child", stdin=theirs, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
                )
        except OSError as error:
            self._channel.close()
            raise EngineError(f"{self._name} could not be started: {error}.") from error
        assert self._process.stdout is not None
        self._last_words = process.LastWords(self._process.stdout)
        self._finalizer = weakref.finalize(self, _stop, self._process, self._channel, os.getpid())
        try:
            opened, _ = self.ask(job)
        except BaseException:
            self.close()
            raise
        self._open = True
        self.device, self.snapshots, self.hidden = opened.device, opened.snapshots, opened.hidden
        self.sequences = opened.sequences

    @property
    def alive(self) -> bool:
        """Whether it was alive when it was last heard of."""
        return self._finalizer.alive

    @property
    def limit_s(self) -> float:
        """How long the next answer may take."""
        return self._limits.step_s if self._warm else self._limits.start_s

    def ask(
        self, request: wire.Request, payload: wire.Payload = b"", into: memoryview | None = None, steps: int = 1
    ) -> tuple[wire.Answer, wire.Payload]:
        """Return the answer to a request, and its payload; ``steps`` is how many times as long as one it may take.

        Raises the error that it tells of, or ``EngineCrashedError`` or ``EngineTimeoutError``.
        """
        answer, sent = self._exchange(request, payload, into, steps)
        if answer.failure is not None:
            raise wire.error(answer.failure)
        self._warm = self._warm or isinstance(request, wire.Step)
        return answer, sent

    def send(self, message: wire.Request, payload: wire.Payload = b"") -> None:
        """Send a message whole, from any thread. Raises ``OSError``."""
        with self._sending:
            wire.send(self._channel, message, payload)

    def close(self) -> None:
        """Let the process end, and see to it that it does. Safe to call twice."""
        self._finalizer()

    def _exchange(
        self, request: wire.Request, payload: wire.Payload, into: memoryview | None, steps: int
    ) -> tuple[wire.Answer, wire.Payload]:
        limit_s = steps * self.limit_s
        try:
            self._channel.settimeout(limit_s)
            self.send(request, payload)
            head, sent = wire.receive(self._channel, into)
            return msgspec.msgpack.decode(head, type=wire.Answer), sent
        except TimeoutError:
            self._end()
            message = f"{self._name} did not answer within {limit_s:g} s and was ended{self._last_words}."
            raise EngineTimeoutError(message, hint=self._next_step) from None
        except (EOFError, OSError):
            ending = self._ending()
            self._end()
            raise EngineCrashedError(f"{self._name} {ending}{self._last_words}.", hint=self._next_step) from None
        except BaseException:  # a Ctrl-C: the answer that comes later must not be taken for another's
            self._end()
            raise

    @property
    def _next_step(self) -> str:
        return "The next call starts another." if self._open else "See what the engine says of itself: edgepack doctor"

    def _ending(self) -> str:
        try:
            return process.ending(self._process.wait(_END_S))
        except subprocess.TimeoutExpired:
            return "closed the connection"

    def _end(self) -> None:
        self._finalizer.detach()
        self._channel.close()
        process.end(self._process)


def _stop(child: subprocess.Popen[bytes], channel: socket.socket, owner: int) -> None:
    if os.getpid() != owner:  # a fork has the socket, but not the right
        return
    with suppress(OSError):
        channel.shutdown(socket.SHUT_RDWR)  # a thread that waits for an answer would keep it open
    channel.close()
    with suppress(subprocess.TimeoutExpired):
        child.wait(_LAST_WORDS_S)
    process.end(child)
