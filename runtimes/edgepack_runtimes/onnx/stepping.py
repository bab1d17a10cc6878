"""What every session on onnxruntime does alike: one owner, chunks, a cancel between two operators, one step at a time.

How a step's inputs, its caches and its logits are bound is the session's own.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from edgepack import snapshot
from edgepack.admission import admitted
from edgepack.bundle.decoder import Decoder
from edgepack.errors import Cancelled, ContextTooLargeError, EngineError
from edgepack.runtime import Options
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.onnx.pool import Pool
from edgepack_runtimes.onnx.wire import GRAPH_FILE
from edgepack_runtimes.threads import Threads, Watch

Float32 = NDArray[np.float32]


class Running(ABC):
    """An engine that a session runs, of whatever graph. ``check`` looks at the variant's files before the engine
    does."""

    def __init__(
        self, variant: Path, decoder: Decoder, options: Options, device: str, check: Callable[[], None]
    ) -> None:
        if options.context > decoder.context:
            raise ContextTooLargeError(
                f"A context of {options.context} exceeds the {decoder.context} positions that the variant covers."
            )
        check()
        engine.load()
        from onnxruntime import RunOptions

        self._decoder = decoder
        self._options = options
        self._facts = snapshot.facts("onnx", decoder, options.kv_cache)
        self._owner = threading.get_ident()
        self._lock = threading.RLock()  # re-entrant, because a signal handler may cancel while inside
        self._running = False
        self._cancelled = False
        self._open = True
        self._run_options = RunOptions()
        self._run_options.log_severity_level = 4
        watch = Watch()
        self._engine = engine.start(variant / GRAPH_FILE, options.threads, device, spin=options.spin is not False)
        # Where it was said what they do while they wait, and on a GPU, they stay as many as they are.
        self._threads = Threads(options.threads, watch.free) if options.spin is None and device == "cpu" else None
        self._pool = Pool(self._engine, options.threads)
        self._binding = self._engine.io_binding()
        chunk = options.context if decoder.at_once else min(options.chunk, options.context)
        self._ids = np.zeros(max(1, chunk), np.int64)
        self._mask = np.ones(options.context, np.int64)

    @property
    def device(self) -> str:
        """What the graph runs on, by the provider that the engine assigned its operators to."""
        used = {provider for _, provider in engine.assigned(self._engine)}
        return "cuda" if used == {engine.PROVIDERS["cuda"]} else "cpu"

    def cancel(self) -> None:
        """Stop a forward that is running, from any thread."""
        with self._lock:
            if self._running:
                self._cancelled = True
                self._run_options.terminate = True

    def close(self) -> None:
        """Free the engine's memory."""
        if self._open:
            self._check_use()
            self._open = False
            self._release()
            self._pool.close()
            del self._binding, self._pool, self._engine

    @abstractmethod
    def _release(self) -> None:
        """Let go of the caches."""

    def _run(self) -> None:
        """Run the engine once with what is bound. Raises ``Cancelled`` or ``EngineError``."""
        if self._threads:
            self._pool.use(self._threads.next())
        began, used = perf_counter(), process_time()
        try:
            self._engine.run_with_iobinding(self._binding, self._run_options)
        except Exception as error:  # its exceptions have no common base but this
            if self._cancelled:
                raise Cancelled("The evaluation was cancelled.") from None
            raise EngineError(f"onnxruntime failed: {engine.reason(error)}") from error
        if self._threads:
            self._threads.took(perf_counter() - began, process_time() - used)

    def _bind_input(self, name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)

    def _bind_logits(self, name: str, target: NDArray[np.generic], shape: tuple[int, ...]) -> None:
        self._binding.bind_output(name, "cpu", 0, np.float32, shape, target.ctypes.data)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        with self._lock:
            self._running, self._cancelled = True, False
        try:
            yield
        finally:
            with self._lock:
                self._running = False
                self._run_options.terminate = False

    def _check_use(self) -> None:
        if not self._open:
            raise EngineError("The session is closed.")
        if threading.get_ident() != self._owner:
            raise EngineError("A session belongs to the thread that opened it; only cancel may come from another.")


class Stepping(Running):
    """The part of an ``edgepack.runtime.Session`` of one text that does not ask what the graph is."""

    def __init__(
        self, variant: Path, decoder: Decoder, options: Options, device: str, check: Callable[[], None]
    ) -> None:
        super().__init__(variant, decoder, options, device, check)
        self._length = 0

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        return self._length

    def forward(self, tokens: Sequence[int]) -> Float32:
        """Append tokens and return the logits after the last: float32 [n_vocab]."""
        ids = self._admit(tokens)
        logits = np.empty((1, self._decoder.n_vocab), np.float32)
        self._evaluate(ids, logits)
        last: Float32 = logits[0]
        return last

    def forward_all(self, tokens: Sequence[int]) -> Float32:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        ids = self._admit(tokens)
        logits = np.empty((len(ids), self._decoder.n_vocab), np.float32)
        self._evaluate(ids, logits)
        return logits

    def _evaluate(self, ids: list[int], logits: Float32) -> None:
        """Append ids in chunks and fill ``logits`` [rows, n_vocab] with those after the last ``rows`` ids.

        A chunk before these positions computes no logits at all.
        """
        before, wanted = self._length, len(ids) - len(logits)
        if len(ids) > 1:  # a prompt, or guesses
            self._mark()
        with self._interruptible():
            try:
                for start in range(0, len(ids), len(self._ids)):
                    if self._cancelled:
                        raise Cancelled("The evaluation was cancelled.")
                    chunk = ids[start : start + len(self._ids)]
                    skipped = min(max(wanted - start, 0), len(chunk))
                    first = max(start - wanted, 0)
                    self._step(chunk, skipped, logits[first : first + len(chunk) - skipped])
            except BaseException:
                self._go_back(before)
                raise
        if len(ids) > 1:
            self._mark()

    def _mark(self) -> None:
        """Keep what is needed to come back to this length later, of what cannot be cut."""

    def _go_back(self, length: int) -> None:
        """Forget all but the first ``length`` tokens, or more where what is kept of them does not reach."""
        self._length = length

    @abstractmethod
    def _step(self, ids: list[int], start: int, logits: Float32) -> None:
        """Append ids, a chunk at most, and fill ``logits`` [len(ids) - start, n_vocab] with those from ``start`` on."""

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._check_use()
        return admitted(tokens, n_vocab=self._decoder.n_vocab, length=self._length, context=self._options.context)

    def _check_rewind(self, length: int) -> None:
        self._check_use()
        if not 0 <= length <= self._length:
            raise ValueError(f"The cache holds {self._length} tokens; it cannot be rewound to {length}.")
