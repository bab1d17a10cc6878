"""A decode loop on llama.cpp: chunks of tokens in, logits out, with a cancel that stops in the middle of a chunk."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from ctypes import POINTER, c_char, c_float, c_int8, c_int32
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack import snapshot
from edgepack.admission import admitted
from edgepack.errors import Cancelled, EngineError
from edgepack.snapshot import Buffer
from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.library import Library
from edgepack_runtimes.gguf.ring import Bytes, Ring
from edgepack_runtimes.gguf.state import read_rest, read_state, rearrange, remove_from, write_sequence, write_state
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.threads import Threads

Float32 = NDArray[np.float32]

OUTPUTS: Final = 32
"""Tokens of which one step can return logits. It bounds the engine's buffers: a row of logits is 0.5 MB at a
vocabulary of 128k, and the engine keeps two copies of each."""

_SEQUENCE: Final = 0
_OLDEST: Final = struct.Struct("<i")
_LAST_WORDS_S: Final = 10.0


class Native:
    """The model, the context, its threads and the batch of one session, freed once: by ``close``, by the collector, or
    at exit. ``columns`` are the numbers that it gives after a token: those of its logits, or of its ``states``."""

    def __init__(
        self, library: Library, model: int, context: int, columns: int, chunk: int, threads: int, *, states: bool
    ) -> None:
        self.library = library
        self.native = library.native
        self.model: int | None = model
        self.context: int | None = context
        self.memory = self.native.llama_get_memory(context)
        self.columns = columns
        self._results = self.native.llama_get_embeddings if states else self.native.llama_get_logits
        self.threads = threads
        self.pool = library.pools.attach(context, threads) if library.pools else None
        # Held through every call into the context, which does not survive two threads at once.
        self.busy = threading.Lock()
        self.closing = False
        self._process = os.getpid()
        # The abort callback runs on the engine's threads for every node of the graph. A Python function there would
        # take the interpreter's lock hundreds of times per token, and end the process if it ran during the
        # interpreter's exit. strlen needs neither: an empty string is false, a string of one character is true.
        self.flag = (c_char * 2)()
        self.native.llama_set_abort_callback(
            context, ctypes.cast(self.native.strlen, ctypes.c_void_p), ctypes.cast(self.flag, ctypes.c_void_p)
        )
        # No arrays of numpy: between two steps of an answer the weights have taken the processor's caches, and then
        # numpy takes 25 us longer than ctypes to convert a token. For the same reason the view of the logits, which
        # are at the same place step after step, is made once: that takes 30 us then.
        self._place, self._view = (0, 0), np.empty((0, columns), np.float32)
        self.tokens, self.positions, self.outputs = (c_int32 * chunk)(), (c_int32 * chunk)(), (c_int8 * chunk)()
        sequence = ctypes.pointer(c_int32(_SEQUENCE))
        self.batch = abi.Batch(
            n_tokens=0,
            token=self.tokens,
            embd=None,
            pos=self.positions,
            n_seq_id=(c_int32 * chunk)(*[1] * chunk),
            seq_id=(POINTER(c_int32) * chunk)(*[sequence] * chunk),
            logits=self.outputs,
        )

    def results(self, rows: int) -> Float32:
        """Return those of a step, float32 [rows, columns], in the engine's memory: they last until the next one."""
        place = self._results(self.context), rows
        if place != self._place:
            found = (c_float * (rows * self.columns)).from_address(place[0])
            self._place, self._view = place, np.frombuffer(memoryview(found), np.float32).reshape(rows, self.columns)
        return self._view

    def use(self, threads: int) -> None:
        """Compute with so many threads from the next step on."""
        self.threads = threads
        self.native.llama_set_n_threads(self.context, threads, threads)
        if self.pool is not None and self.library.pools is not None and self.context is not None:
            self.library.pools.use(self.context, self.pool, threads)

    def free(self) -> None:
        """Free the engine's memory, after asking a decode that still runs in a daemon thread to stop.

        A fork has the engine as it was at that moment, in the middle of a step perhaps, and leaves it alone.
        """
        self.closing = True
        if os.getpid() != self._process:
            return
        self.flag[0] = b"\1"
        # A decode that does not stop keeps its memory: better a leak at exit than a crash.
        if self.busy.acquire(timeout=_LAST_WORDS_S):
            context, self.context, model, self.model = self.context, None, self.model, None
            if context is not None:
                self.native.llama_free(context)
            if self.pool is not None and self.library.pools is not None:
                self.library.pools.free(self.pool)
                self.pool = None
            if model is not None:
                self.native.llama_model_free(model)
            self.busy.release()


class GgufSession:
    """A ``Session`` on llama.cpp, see ``edgepack.runtime``. A call from a second thread is an ``EngineError``."""

    def __init__(
        self,
        native: Native,
        *,
        path: Path,
        device: str,
        facts: Mapping[str, str],
        n_vocab: int,
        context: int,
        chunk: int,
        ring: Ring | None,
        marks: Marks[Bytes] | None,
        threads: Threads | None,
        spin: bool | None,
    ) -> None:
        self._native = native
        self._path = path
        self._device = device
        self._facts = facts
        self._n_vocab = n_vocab
        self._context = context
        self._chunk = chunk
        self._ring = ring
        self._marks = marks  # None where all layers can forget single tokens
        # An accelerator's steps leave the threads idle, whoever has the cores.
        self._threads = threads if device == "cpu" else Threads(1)
        self._spin = spin
        self._owner = threading.get_ident()
        self._length = 0
        self._placed = 0  # of the tokens that were given to the engine
        self._oldest = 0  # what llama.cpp does not know of ``_held_from``
        self._running = False
        # Re-entrant, because a signal handler may cancel while its own thread is inside.
        self._state = threading.RLock()
        self._finalizer = weakref.finalize(self, native.free)

    @property
    def device(self) -> str:
        """What the layers were placed on, see ``placement``."""
        return self._device

    @property
    def length(self) -> int:
        """Tokens in the KV cache. Raises ``EngineError`` after ``close``."""
        if self._native.closing:
            raise self._closed()
        return self._length

    def forward(self, tokens: Sequence[int]) -> Float32:
        """Append tokens (at least one) and return the logits after the last: float32 [n_vocab]."""
        ids = self._admit(tokens)
        logits: Float32 = self._evaluate(ids, len(ids) - 1)[0]
        return logits

    def forward_all(self, tokens: Sequence[int]) -> Float32:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        return self._evaluate(self._admit(tokens), 0)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, or all where the layers with a window have forgotten too much.

        Returns how many are kept. Raises ``ValueError`` unless 0 <= length <= self.length.
        """
        self._enter()
        if not 0 <= length <= self._length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self._length} tokens")
        if length < self._length:
            with self._inside():
                self._forget(length)
        return self._length

    def snapshot(self) -> bytes:
        """Return the position from which on layers with a window hold all tokens, int32, and the cache as llama.cpp
        writes it, sealed with what it belongs to."""
        self._enter()
        with self._inside() as native:
            oldest = self._held_from()
            payload = self._written(native)
        if payload is None:
            raise EngineError(f"llama.cpp cannot write the state of {self._path}.")
        return snapshot.seal(self._facts, self._length, [_OLDEST.pack(oldest), *payload])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError``; where llama.cpp refuses it, the cache is empty."""
        self._enter()
        length, payload = snapshot.unseal(state, self._facts, self._context)
        with self._inside():
            self._forget(0)  # the state of an empty cache would leave another as it is
            if not self._read(length, payload):
                self._forget(0)
                raise ValueError(f"llama.cpp refuses the snapshot of {length} tokens for {self._path}.")
            self._length = self._placed = length
            if self._marks is not None:
                self._marks.clear()
                self._mark()

    def _written(self, native: Native) -> Sequence[Buffer] | None:
        if self._marks is None:
            return write_state(native.native, native.context)
        state = write_sequence(native.native, native.context, abi.STATE_OF_ALL)
        return None if state is None else [state.data]

    def _read(self, length: int, payload: memoryview) -> bool:
        native = self._native
        if len(payload) < _OLDEST.size:
            return False
        (self._oldest,) = _OLDEST.unpack_from(payload)
        found = read_state(native.native, native.context, payload[_OLDEST.size :])
        return found == length and 0 <= self._oldest <= length and self._has_order(length)

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

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._enter()
        return admitted(tokens, n_vocab=self._n_vocab, length=self._length, context=self._context)

    def _evaluate(self, ids: list[int], first: int) -> Float32:
        """Append ids; return the outputs after each from index ``first`` on: float32 [len(ids) - first, columns]."""
        start = self._length
        try:
            self._begin()
            with self._native.busy:
                if len(ids) > 1:  # a prompt, or guesses
                    self._mark()
                logits = self._run(ids, first)
                if len(ids) > 1:
                    self._mark()
            self._end()
        except BaseException:
            self._abandon(start)
            raise
        return logits

    def _begin(self) -> None:
        with self._state:
            self._native.flag[0] = b"\0"
            self._running = True

    def _end(self) -> None:
        with self._state:
            if self._native.flag[0] != b"\0":
                raise self._cancelled()
            self._running = False

    def _abandon(self, start: int) -> None:
        with self._state:
            self._running = False
        with self._native.busy:
            if self._native.context is not None:
                self._forget(start)

    def _run(self, ids: list[int], first: int) -> Float32:
        native = self._native
        if first == len(ids) - 1:  # a prompt, or a token: the last chunk alone has logits
            logits, step = None, self._chunk
        else:
            logits, step = np.empty((len(ids) - first, self._n_vocab), np.float32), min(self._chunk, OUTPUTS)
        for begin in range(0, len(ids), step):
            chunk = ids[begin : begin + step]
            n = len(chunk)
            silent = min(max(first - begin, 0), n)
            self._step(chunk, silent)
            if logits is not None and silent < n:
                logits[begin + silent - first : begin + n - first] = native.results(n - silent)
        return native.results(1).copy() if logits is None else logits

    def _step(self, chunk: list[int], silent: int) -> None:
        """Append a chunk of ids, of which the first ``silent`` have no outputs."""
        native = self._native
        for place, token in enumerate(chunk):
            native.tokens[place] = token
            native.positions[place] = self._length + place
            native.outputs[place] = int(place >= silent)
        self._decode(len(chunk))
        self._length += len(chunk)

    def _decode(self, n: int) -> None:
        native = self._native
        if native.closing:  # at exit, in the main thread, while this one goes on
            raise self._closed()
        native.batch.n_tokens = n
        self._placed = self._length + n
        if native.library.pools:
            native.library.pools.wait(self._spin)
        code = self._compute()
        if code == abi.ABORTED or native.flag[0] != b"\0":
            raise self._cancelled()
        if code == abi.CONTEXT_FULL:
            raise EngineError(f"llama.cpp found no room for {n} tokens after {self._length} in {self._path}.")
        if code != abi.DECODED:
            raise EngineError(f"llama.cpp failed with code {code} on {n} tokens after {self._length} in {self._path}.")

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

    def _forget(self, length: int) -> None:
        native, ring, oldest = self._native, self._ring, self._held_from()
        if ring is not None and oldest > ring.oldest_seen(length):
            length = 0
        if self._marks is not None and length < self._placed:
            length, state = self._marks.back(length)
            if state is not None and not read_rest(native.native, native.context, state):
                raise EngineError(f"llama.cpp cannot go back to {length} tokens in {self._path}.")
        if not remove_from(native.native, native.memory, length):
            raise EngineError(f"llama.cpp cannot remove the tokens after {length} from the cache of {self._path}.")
        if ring is not None and ring.is_crossed(length, self._placed) and not self._has_order(length):
            raise EngineError(f"llama.cpp cannot put the tokens before {length} in order in {self._path}.")
        self._length = self._placed = length
        self._oldest = min(oldest, length)

    def _mark(self) -> None:
        native = self._native
        if self._marks is None or not self._length or self._length in self._marks or native.context is None:
            return
        if (state := write_sequence(native.native, native.context, abi.STATE_OF_THE_REST)) is None:
            raise EngineError(f"llama.cpp cannot write the state of {self._path}.")
        self._marks.keep(self._length, state)

    def _has_order(self, length: int) -> bool:
        """Put the tokens of layers with a window where they belong, and say whether llama.cpp did."""
        native, ring = self._native, self._ring
        return ring is None or not length or rearrange(native.native, native.context, ring, length)

    def _held_from(self) -> int:
        """Return the position from which on layers with a window hold all tokens.

        llama.cpp knows it, but for cells that were only filled: see ``ring.rearranged``.
        """
        if self._ring is None:
            return 0
        found: int = self._native.native.llama_memory_seq_pos_min(self._native.memory, _SEQUENCE)
        return max(self._oldest, found)

    def _cancelled(self) -> Cancelled:
        return Cancelled(f"A forward on {self._path} was cancelled.")

    def _closed(self) -> EngineError:
        return EngineError(f"The session on {self._path} is closed.", hint="Load the model again.")
