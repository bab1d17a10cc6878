"""What one session has of llama.cpp: the model, the context, its threads and the batch, all freed together."""

from __future__ import annotations

import ctypes
import os
import threading
from ctypes import POINTER, c_char, c_float, c_int8, c_int32
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack_runtimes.gguf import abi
from edgepack_runtimes.gguf.library import Library

Float32 = NDArray[np.float32]

_LAST_WORDS_S: Final = 10.0


class Native:
    """The model, the context, its threads and the batch of one session, freed once: by ``close``, by the collector, or
    at exit. ``columns`` are the numbers that it gives after a token: those of its logits, or of its ``states``.
    ``room`` are the tokens of a batch, all of sequence 0 until it is said otherwise; ``sequences`` has a pointer to the
    number of each."""

    def __init__(
        self,
        library: Library,
        model: int,
        context: int,
        columns: int,
        room: int,
        threads: int,
        *,
        states: bool,
        sequences: int = 1,
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
        self.tokens, self.positions, self.outputs = (c_int32 * room)(), (c_int32 * room)(), (c_int8 * room)()
        self.sequences = [ctypes.pointer(c_int32(each)) for each in range(sequences)]
        self.batch = abi.Batch(
            n_tokens=0,
            token=self.tokens,
            embd=None,
            pos=self.positions,
            n_seq_id=(c_int32 * room)(*[1] * room),
            seq_id=(POINTER(c_int32) * room)(*self.sequences[:1] * room),
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
