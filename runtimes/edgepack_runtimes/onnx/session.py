"""A session of edgepack's own graphs: a buffer for each layer's keys and values, in which the engine works in place."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from edgepack import snapshot
from edgepack.bundle.decoder import Decoder
from edgepack.runtime import Options
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.onnx.cache import DTYPES, Cache, Numbers, States, new_cache
from edgepack_runtimes.onnx.check import check
from edgepack_runtimes.onnx.graph import output_name
from edgepack_runtimes.onnx.signature import caches_of, check_signature, state_names
from edgepack_runtimes.onnx.stepping import Float32, Stepping
from edgepack_runtimes.onnx.wire import GRAPH_FILE


class OnnxSession(Stepping):
    """See ``edgepack.runtime.Session``.

    The caches are bound once, and stay on the device. The other inputs and the logits are this session's memory, bound
    again at each step: an input of a GPU is copied to it then. A cancel stops the engine between two operators.
    """

    def __init__(self, variant: Path, decoder: Decoder, options: Options, device: str) -> None:
        super().__init__(variant, decoder, options, device, lambda: check(variant, decoder, options.kv_cache))
        self._output = output_name(decoder)
        check_signature(self._engine, variant / GRAPH_FILE, decoder, options.kv_cache)
        self._caches: list[Cache] = []
        for past, present, shape in caches_of(decoder):
            self._caches.append(new_cache(decoder, options, shape, device))
            self._caches[-1].bind(self._binding, past, present)
        shapes = {state_names(*key): (1, *shape) for key, shape in decoder.states.items()}
        self._states = States(shapes, device) if shapes else None
        self._marks: Marks[list[Numbers]] = Marks()
        self._start = np.zeros(1, np.int64)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens: what is behind them is written over later.

        A layer with a window holds the whole context too: onnxruntime's GroupQueryAttention reads its cache from the
        first position on, whatever the window hides. States that cannot be cut go back to a mark.
        """
        self._check_rewind(length)
        self._go_back(length)
        return self._length

    def snapshot(self) -> bytes:
        """Return the keys and values of each layer, [KV heads, length, head dimension], sealed."""
        self._check_use()
        states = self._states.copies() if self._states else []
        parts = [*(each.read(self._length) for each in self._caches), *states]
        return snapshot.seal(self._facts, self._length, [each.tobytes() for each in parts])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was."""
        self._check_use()
        length, payload = snapshot.unseal(state, self._facts, self._options.context)
        shapes = [(1, *shape) for shape in self._decoder.states.values()]
        whole = 4 * sum(map(math.prod, shapes))
        values: Numbers = np.frombuffer(payload[: len(payload) - whole], DTYPES[self._options.kv_cache])
        kept: Numbers = np.frombuffer(payload[len(payload) - whole :], np.float32)
        sizes = [length * math.prod(shape) for _, _, shape in caches_of(self._decoder)]
        *parts, rest = np.split(values, np.cumsum(sizes, dtype=int))
        if len(rest):
            raise ValueError("the snapshot has more than the keys and values of its tokens")
        for cache, saved, (_, _, (heads, size)) in zip(self._caches, parts, caches_of(self._decoder), strict=True):
            cache.write(saved.reshape(heads, length, size))
        self._length = length
        self._marks.clear()
        if self._states:
            states = np.split(kept, np.cumsum([*map(math.prod, shapes)])[:-1])
            self._states.put([state.reshape(shape) for state, shape in zip(states, shapes, strict=True)])
            self._mark()

    def _release(self) -> None:
        self._caches = []
        self._states = None
        self._marks.clear()

    def _mark(self) -> None:
        if self._states and self._length and self._length not in self._marks:
            self._marks.keep(self._length, self._states.copies())

    def _go_back(self, length: int) -> None:
        if self._states and length < self._length:
            length, state = self._marks.back(length)
            self._states.put(state)
        self._length = length

    def _step(self, ids: list[int], start: int, logits: Float32) -> None:
        count = len(ids)
        self._ids[:count] = ids
        self._start[0] = start
        self._bind_input("input_ids", self._ids, (1, count))
        self._bind_input("attention_mask", self._mask, (1, self._length + count))
        self._bind_input(f"{self._output}_start", self._start, (1,))
        # An empty output is bound too, to an address that is never written.
        target = logits if len(logits) else self._start
        self._bind_logits(self._output, target, (1, len(logits), self._decoder.outputs))
        if self._states:
            self._states.bind(self._binding)
        self._run()
        if self._states:
            self._states.turn()
        self._length += count
