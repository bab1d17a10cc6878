"""An engine in a process of its own: its crash or its hang is an error here, and the next call starts another.

``IsolatedRuntime`` goes where a runtime goes. The child finds the runtime by its name, so that nothing but token ids,
logits and snapshots crosses the border (``edgepack.isolation.wire``). ``edgepack.isolation.engine_process`` keeps the
child, whose own side is ``edgepack.isolation.child``.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import get_ident

import numpy as np
from numpy.typing import NDArray

from edgepack.admission import WithoutHead, admitted, admitted_steps, check_copy, check_first, check_sequence
from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, EngineError, EngineMissingError, UsageError
from edgepack.isolation import process, wire
from edgepack.isolation.engine_process import EngineProcess, Limits
from edgepack.isolation.probing import probe
from edgepack.runtime import Options, Runtime, Session, Step, Support

Float32 = NDArray[np.float32]
Asking = Callable[[EngineProcess, int, NDArray[np.int32]], None]
"""Asks a process for a step: the index of its first id, and its ids."""


class IsolatedRuntime:
    """A registered runtime whose sessions run in child processes.

    ``timeout_s`` bounds a step of at most ``Options.chunk`` tokens, ``start_timeout_s`` the load and the first step
    after it. A session is usable after ``EngineCrashedError`` and ``EngineTimeoutError``: its ``length`` is 0 then.
    """

    def __init__(self, runtime_name: str, timeout_s: float = 60.0, start_timeout_s: float = 600.0) -> None:
        self.name = runtime_name
        self._limits = Limits(timeout_s, start_timeout_s)

    def probe(self, hardware: Hardware) -> Support:
        """Say what the runtime says of itself, in a child process as well."""
        return probe(self.name, hardware)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Start a child that loads the variant's folder. Raises as the runtime's own ``open``, and the two errors."""
        if not process.can_start():
            raise EngineMissingError(
                "An isolated engine needs a Python interpreter to run in, and this program cannot start one.",
                hint="Load without isolate.",
            )
        if not available():
            raise EngineMissingError(
                "An isolated engine is handed a socket and ended by an alarm, and this system does neither.",
                hint="Load without isolate.",
            )
        job = wire.Open(self.name, os.fsencode(os.path.abspath(variant)), decoder, options)
        child = EngineProcess(job, self._limits)
        if child.hidden:
            return HiddenSession(job, self._limits, child)
        if child.sequences > 1:
            return SequencesSession(job, self._limits, child)
        return (SnapshotSession if child.snapshots else IsolatedSession)(job, self._limits, child)


def available() -> bool:
    """Say whether an engine can have a process of its own here: Windows, and a frozen program, have none for it."""
    return process.can_start() and os.name == "posix" and hasattr(signal, "setitimer")


def isolated(name: str, runtimes: Mapping[str, Runtime] | None) -> IsolatedRuntime:
    """Return a runtime in isolation. Raises ``UsageError`` where ``runtimes`` replaces the registered ones."""
    if runtimes is not None:
        raise UsageError(
            "A runtime that is given as an object cannot be isolated: its child finds it by name.",
            hint="Register it under the entry point group edgepack.runtimes, or load without isolate.",
        )
    return IsolatedRuntime(name)


class IsolatedSession:
    """A ``Session`` in another process, see ``edgepack.runtime``. A call from a second thread is an ``EngineError``."""

    def __init__(self, job: wire.Open, limits: Limits, child: EngineProcess) -> None:
        self._job = job
        self._limits = limits
        self._child = child
        self._owner = get_ident()
        self._closed = False
        self._lengths = [0] * child.sequences
        self._running = False
        self._number = 0  # of the forward that runs, or that ran last
        self._cancelled = 0

    @property
    def device(self) -> str:
        """What the child computes on."""
        return self._child.device

    @property
    def length(self) -> int:
        """Tokens in the KV cache, 0 after the process was lost. Raises ``EngineError`` after ``close``."""
        if self._closed:
            raise self._gone()
        return self._lengths[0] if self._child.alive else 0

    def forward(self, tokens: Sequence[int]) -> Float32:
        """Append tokens (at least one) and return the logits after the last: float32 [n_vocab]."""
        logits: Float32 = self._evaluate(tokens, every=False)[0]
        return logits

    def forward_all(self, tokens: Sequence[int]) -> Float32:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate(tokens, every=True)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens and return how many the child kept."""
        self._enter()
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        return self._cut(length) if length < self.length else length

    def cancel(self) -> None:
        """Stop a ``forward`` that is running; without one running, do nothing. From any thread, any number of times."""
        number = self._number
        if self._running and self._cancelled != number:
            self._cancelled = max(self._cancelled, number)
            with suppress(OSError):  # a child that is gone computes nothing
                self._child.send(wire.Cancel(number))

    def close(self) -> None:
        """End the process. Safe to call twice. Raises ``EngineError`` in a thread that does not own the session."""
        if not self._closed:
            self._enter()
            self._closed = True
            self._child.close()

    def _enter(self) -> None:
        if self._closed:
            raise self._gone()
        if get_ident() != self._owner:
            raise EngineError(f"{self._place} belongs to another thread.", hint="Only cancel may come from elsewhere.")
        if self._running:
            raise EngineError(f"{self._place} was called in the middle of a forward.")

    def _living(self) -> EngineProcess:
        """Return the child, after starting another if it is lost."""
        if not self._child.alive:
            self._child = EngineProcess(self._job, self._limits)
            self._lengths = [0] * len(self._lengths)
        return self._child

    def _evaluate(self, tokens: Sequence[int], *, every: bool) -> Float32:
        ids = self._admit(tokens)
        logits = np.empty((len(ids) if every else 1, self._job.decoder.n_vocab), np.float32)

        def ask(child: EngineProcess, begin: int, part: NDArray[np.int32]) -> None:
            rows = logits[begin : begin + len(part)] if every else logits
            child.ask(wire.Forward(self._number, every, child.limit_s), part.tobytes(), rows.data.cast("B"))

        self._in_steps(ids, ask)
        return logits

    def _in_steps(self, ids: NDArray[np.int32], ask: Asking) -> None:
        """Append ids by steps, each of which is asked for."""
        self._number += 1
        self._running = True
        try:
            self._run(ids, ask)
        finally:
            self._running = False

    def _run(self, ids: NDArray[np.int32], ask: Asking) -> None:
        child, size, at_once = self._living(), max(1, self._job.options.chunk), self._job.decoder.at_once
        size = max(size, len(ids)) if at_once else size
        try:
            for begin in range(0, len(ids), size):
                self._check_cancelled()
                ask(child, begin, ids[begin : begin + size])
            self._check_cancelled()
        except BaseException:
            with suppress(EngineError):  # a child that is gone has no more to forget
                if child.alive:
                    self._cut(self._lengths[0])
            raise
        self._lengths[0] += 0 if at_once else len(ids)

    def _cut(self, length: int, sequence: int = 0) -> int:
        answer, _ = self._child.ask(wire.Rewind(length, sequence))
        self._lengths[sequence] = answer.length
        return answer.length

    def _check_cancelled(self) -> None:
        if self._cancelled == self._number:
            raise Cancelled(f"A forward of {self._place} was cancelled.")

    def _admit(self, tokens: Sequence[int]) -> NDArray[np.int32]:
        self._enter()
        job = self._job
        ids = admitted(tokens, n_vocab=job.decoder.n_vocab, length=self.length, context=job.options.context)
        return np.array(ids, np.int32)

    @property
    def _place(self) -> str:
        return f"The isolated session of {self._job.runtime} on {os.fsdecode(self._job.variant)}"

    def _gone(self) -> EngineError:
        return EngineError(f"{self._place} is closed.", hint="Load the model again.")


class SnapshotSession(IsolatedSession):
    """A session whose runtime has ``Snapshots``; they are the bytes that the runtime itself gives and takes."""

    def snapshot(self) -> bytes:
        """Return the cache in the engine's own form."""
        self._enter()
        child = self._living()
        _, state = child.ask(wire.Snapshot())
        return bytes(state)

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was or empty."""
        self._enter()
        child = self._living()
        try:
            answer, _ = child.ask(wire.Restore(), state)
        except ValueError:
            self._cut(0)
            raise
        self._lengths[0] = answer.length


class SequencesSession(IsolatedSession):
    """A session of several sequences, see ``edgepack.runtime.Sequences``. With the process all of them are lost."""

    @property
    def sequences(self) -> int:
        """How many there are."""
        return len(self._lengths)

    def length_of(self, sequence: int) -> int:
        """Return the tokens of a sequence, 0 after the process was lost. Raises ``EngineError`` after ``close``."""
        if self._closed:
            raise self._gone()
        check_sequence(sequence, len(self._lengths))
        return self._lengths[sequence] if self._child.alive else 0

    def forward_batch(self, steps: Sequence[Step]) -> list[Float32]:
        """Append tokens to sequences; return float32 [n_vocab] for each step, with ``every`` [n_tokens, n_vocab]."""
        self._enter()
        job = self._job
        admitted = admitted_steps(
            ((step.sequence, step.tokens) for step in steps),
            n_vocab=job.decoder.n_vocab,
            lengths=self._held(),
            context=job.options.context,
            chunk=job.options.chunk,
        )
        parts = [wire.Part(step.sequence, len(ids), step.every) for step, ids in zip(steps, admitted, strict=True)]
        self._number += 1
        self._running = True
        try:
            logits = self._batch(parts, np.concatenate(admitted).astype(np.int32))
        finally:
            self._running = False
        ends = np.cumsum([part.count if part.every else 1 for part in parts])
        rows = np.split(logits, ends[:-1])
        return [found if part.every else found[0] for part, found in zip(parts, rows, strict=True)]

    def rewind_sequence(self, sequence: int, length: int) -> int:
        """Forget all but the first ``length`` tokens of a sequence and return how many the child kept."""
        self._enter()
        held = self.length_of(sequence)
        if not 0 <= length <= held:
            raise ValueError(f"cannot rewind to {length}: sequence {sequence} holds {held} tokens")
        return self._cut(length, sequence) if length < held else length

    def copy(self, source: int, target: int, length: int) -> int:
        """Let a sequence hold the first ``length`` tokens of another, and return how many the child gave it."""
        self._enter()
        check_copy(source, target, length, self._held())
        answer, _ = self._living().ask(wire.Copy(source, target, length))
        self._lengths[target] = answer.length
        return answer.length

    def _held(self) -> list[int]:
        return [self.length_of(each) for each in range(len(self._lengths))]

    def _batch(self, parts: list[wire.Part], ids: NDArray[np.int32]) -> Float32:
        """Append the ids of all parts, and return the logits that they want, one below the other."""
        child, columns = self._living(), self._job.decoder.n_vocab
        logits = np.empty((sum(part.count if part.every else 1 for part in parts), columns), np.float32)
        # A step of several chunks takes as long as several.
        steps = max(1, -(-len(ids) // self._job.options.chunk))
        try:
            self._check_cancelled()
            request = wire.Batch(self._number, parts, steps * child.limit_s)
            child.ask(request, ids.tobytes(), logits.data.cast("B"), steps)
            self._check_cancelled()
        except BaseException:
            with suppress(EngineError):  # a child that is gone has no more to forget
                for part in parts if child.alive else ():
                    self._cut(self._lengths[part.sequence], part.sequence)
            raise
        for part in parts:
            self._lengths[part.sequence] += part.count
        return logits


class HiddenSession(WithoutHead, IsolatedSession):
    """A session of a model without a head, see ``edgepack.runtime.Hidden``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> Float32:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        ids = self._admit(tokens)
        check_first(first, len(ids))
        states = np.empty((len(ids) - first, self._job.decoder.outputs), np.float32)

        def ask(child: EngineProcess, begin: int, part: NDArray[np.int32]) -> None:
            unwanted = min(max(first - begin, 0), len(part) - 1)  # a step has one at least
            request = wire.Hidden(self._number, unwanted, child.limit_s)
            _, sent = child.ask(request, part.tobytes())
            if (end := begin + len(part)) > first:
                states[max(begin - first, 0) : end - first] = np.frombuffer(sent, np.float32).reshape(
                    -1, states.shape[1]
                )

        self._in_steps(ids, ask)
        return states
