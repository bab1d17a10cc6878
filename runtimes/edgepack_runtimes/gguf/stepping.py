"""What every session on llama.cpp does alike: it belongs to one thread, and its steps can be stopped from any."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

from edgepack.errors import Cancelled, EngineError
from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.native import Native
from edgepack_runtimes.threads import Threads

OUTPUTS: Final = 32
"""Tokens of which one step can return logits. It bounds the engine's buffers: a row of logits is 0.5 MB at a
vocabulary of 128k, and the engine keeps two copies of each."""


class Stepping:
    """A model in llama.cpp whose batches are computed one after the other. A call from a second thread is an
    ``EngineError``."""

    def __init__(
        self,
        native: Native,
        *,
        path: Path,
        device: str,
        n_vocab: int,
        context: int,
        chunk: int,
        threads: Threads | None,
        spin: bool | None,
    ) -> None:
        self._native = native
        self._path = path
        self._device = device
        self._n_vocab = n_vocab
        self._context = context
        self._chunk = chunk
        # An accelerator's steps leave the threads idle, whoever has the cores.
        self._threads = threads if device == "cpu" else Threads(1)
        self._spin = spin
        self._owner = threading.get_ident()
        self._running = False
        # Re-entrant, because a signal handler may cancel while its own thread is inside.
        self._state = threading.RLock()
        self._finalizer = weakref.finalize(self, native.free)

    @property
    def device(self) -> str:
        """What the layers were placed on, see ``placement``."""
        return self._device

    def cancel(self) -> None:
        """Stop a ``forward`` that is running; without one running, do nothing. From any thread, any number of times."""
        with self._state:
            if self._running:
                self._native.flag[0] = b"\1"

    def close(self) -> None:
        """Free the engine's memory. Safe to call twice. Raises ``EngineError`` in a thread that does not own it."""
        if self._finalizer.alive:
            self._enter()
            self._finalizer()

    def _enter(self) -> None:
        if self._native.closing:
            raise self._closed()
        if threading.get_ident() != self._owner:
            raise EngineError(
                f"The session on {self._path} belongs to another thread.", hint="Only cancel may come from elsewhere."
            )
        if self._running:
            raise EngineError(f"The session on {self._path} was called in the middle of a forward.")

    @contextmanager
    def _inside(self) -> Iterator[Native]:
        """Keep the context to this call: at exit it may be freed in the main thread while this one goes on."""
        with self._native.busy:
            if self._native.context is None:
                raise self._closed()
            yield self._native

    def _begin(self) -> None:
        with self._state:
            self._native.flag[0] = b"\0"
            self._running = True

    def _end(self) -> None:
        with self._state:
            if self._native.flag[0] != b"\0":
                raise self._cancelled()
            self._running = False

    def _abandon(self, take_back: Callable[[], None]) -> None:
        """End a forward that failed: what it appended is taken back, unless the engine's memory is gone."""
        with self._state:
            self._running = False
        with self._native.busy:
            if self._native.context is not None:
                take_back()

    def _decode(self, n: int, after: str) -> None:
        """Compute the first ``n`` tokens of the batch; ``after`` says in an error after what they come."""
        native = self._native
        if native.closing:  # at exit, in the main thread, while this one goes on
            raise self._closed()
        native.batch.n_tokens = n
        if native.library.pools:
            native.library.pools.wait(self._spin)
        code = self._compute()
        if code == abi.ABORTED or native.flag[0] != b"\0":
            raise self._cancelled()
        if code == abi.CONTEXT_FULL:
            raise EngineError(f"llama.cpp found no room for {n} tokens {after} in {self._path}.")
        if code != abi.DECODED:
            raise EngineError(f"llama.cpp failed with code {code} on {n} tokens {after} in {self._path}.")

    def _compute(self) -> int:
        """Compute the batch, with as many threads as are good, and return llama.cpp's code."""
        native, threads = self._native, self._threads
        if threads is not None:
            if (count := threads.next()) != native.threads:
                native.use(count)
            began, used = perf_counter(), process_time()
        code: int = native.native.llama_decode(native.context, native.batch)
        if threads is not None:
            threads.took(perf_counter() - began, process_time() - used)
        return code

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"A forward on {self._path} was cancelled.")

    def _closed(self) -> EngineError:
        return EngineError(f"The session on {self._path} is closed.", hint="Load the model again.")
