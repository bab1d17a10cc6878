"""A session of mlx: the model, its KV cache, and the seam's rules.

MLX's streams belong to the thread that made them, so the thread that opens a session runs and closes it. MLX cannot
stop an evaluation that runs: a cancel takes effect at the end of the chunk.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import RLock, current_thread
from typing import Any

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from edgepack import snapshot
from edgepack.admission import WithoutHead, admitted, check_first
from edgepack.bundle.decoder import Attention, Decoder, Mixer
from edgepack.device.memory import cells_of
from edgepack.errors import Cancelled, EngineError
from edgepack.runtime import Options
from edgepack_runtimes.marks import Marks
from edgepack_runtimes.mlx.cache import LayerCache, StateCache
from edgepack_runtimes.mlx.model import Transformer


def _caches_of(decoder: Decoder, options: Options, cache_type: mx.Dtype) -> list[LayerCache | StateCache]:
    """Return what each layer reads: of one that has no keys of its own, the cache of the layer that it names."""
    caches: list[LayerCache | StateCache] = []
    for layer in decoder.layers:
        source = layer.mixer.kv_layer if isinstance(layer.mixer, Attention) else None
        caches.append(
            caches[source] if isinstance(source, int) else _cache_of(layer.mixer, decoder, options, cache_type)
        )
    return caches


def _cache_of(mixer: Mixer, decoder: Decoder, options: Options, cache_type: mx.Dtype) -> LayerCache | StateCache:
    if not isinstance(mixer, Attention):
        return StateCache(mixer.states(decoder.hidden_size))
    cells = 1 if decoder.at_once else cells_of("mlx", options, mixer.window)  # which none is used of
    shape = (1, mixer.n_kv_heads, cells, mixer.head_dim)
    return LayerCache(shape, cache_type, mixer.window)


class MlxSession:
    """See ``edgepack.runtime.Session``. Every call but ``cancel`` must come from the thread that opened it."""

    _states: tuple[StateCache, ...] = ()

    def __init__(
        self, model: Transformer, decoder: Decoder, options: Options, cache_type: mx.Dtype, device: mx.Device
    ) -> None:
        self._model: Any = model
        self._n_vocab = decoder.n_vocab
        self._context = options.context
        self._chunk = options.context if decoder.at_once else options.chunk
        self._device = device
        self._facts = snapshot.facts("mlx", decoder, str(cache_type).removeprefix("mlx.core."))
        self._owner = current_thread()
        self.layers = _caches_of(decoder, options, cache_type)
        own = dict.fromkeys(self.layers)  # some layers read the cache of another
        self._cache = [layer for layer in own if isinstance(layer, LayerCache)]
        self._states = tuple(layer for layer in self.layers if isinstance(layer, StateCache))
        self._marks: Marks[list[Mapping[str, mx.array]]] = Marks()
        mx.eval([(layer.keys, layer.values) for layer in self._cache])
        self._lock = RLock()  # re-entrant, because a signal handler may cancel while its own thread is inside
        self._running = False
        self._cancelled = False

    @property
    def device(self) -> str:
        """What the arrays are evaluated on: "metal" or "cpu"."""
        return "metal" if self._device == mx.Device(mx.gpu) else "cpu"

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        self._check_owner()
        return self._cache[0].offset

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after the last: float32 [n_vocab]."""
        ids = self._admit(tokens)
        return self._run(len(ids), lambda: self._last(ids))

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        ids = self._admit(tokens)
        return self._run(len(ids), lambda: np.concatenate([self._logits(hidden) for hidden in self._chunks(ids)]))

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, or all where a layer's window has forgotten too much.

        States that cannot be cut go back to a mark.
        """
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        state = None
        if self._states and length < self.length:
            length, state = self._marks.back(length)
        if not all(layer.holds(length) for layer in self._cache):
            length, state = self._marks.back(0)
        if length < self.length:
            for layer, kept in zip(self._states, state or [{}] * len(self._states), strict=True):
                layer.put(length, kept)
        for cache in self._cache:
            cache.cut(length)
        return length

    def snapshot(self) -> bytes:
        """Return the cache, sealed: the position of each layer's oldest token, int32; the keys and values of each
        layer, [KV heads, tokens, head dimension] in the cache's type; and the states of layers, float32."""
        length = self.length
        bases = np.array([layer.base for layer in self._cache], np.int32)
        with mx.stream(self._device):
            parts = [part for layer in self._cache for part in layer.filled()]
            states = [layer.filled() for layer in self._states]
        return snapshot.seal(self._facts, length, [bases.tobytes(), *parts, *states])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was."""
        self._check_owner()
        length, payload = snapshot.unseal(state, self._facts, self._context)
        bases = np.frombuffer(payload, np.int32, len(self._cache)).tolist()
        helds = [length - base for base in bases]
        if any(not 0 <= held <= min(length, layer.cells) for held, layer in zip(helds, self._cache, strict=True)):
            raise ValueError("The snapshot holds more of a layer than this session has room for.")
        shapes: list[tuple[int, ...]] = []
        shapes += [(2, layer.heads, held, layer.head_bytes) for held, layer in zip(helds, self._cache, strict=True)]
        shapes += [(layer.size,) for layer in self._states]
        parts = np.split(np.frombuffer(payload, np.uint8, offset=4 * len(bases)), np.cumsum([*map(math.prod, shapes)]))
        if parts.pop().size:
            raise ValueError("The snapshot is longer than the layers that it describes.")
        saved = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
        with mx.stream(self._device):
            for layer, base, (keys, values) in zip(self._cache, bases, saved, strict=False):
                layer.fill(base, keys, values)
            for kept, found in zip(self._states, saved[len(self._cache) :], strict=True):
                kept.fill(length, found)
        self._marks.clear()
        self.mark()

    def arrays(self) -> list[mx.array]:
        """Return all that the layers keep."""
        kept = [array for layer in self._cache for array in (layer.keys, layer.values)]
        return kept + [array for layer in self._states for array in layer.state.values()]

    def copy(self, other: MlxSession) -> None:
        """Hold what another session of the same model and options holds."""
        for cache, its in zip(self._cache, other._cache, strict=True):
            cache.copy(its)
        for kept, its_state in zip(self._states, other._states, strict=True):
            kept.put(its_state.offset, its_state.state)
        self._marks = other._marks.copied()

    def cancel(self) -> None:
        """Stop a forward that is running, at the end of its chunk. From any thread."""
        with self._lock:
            self._cancelled = self._running

    def close(self) -> None:
        """Free the model and its cache."""
        self._check_thread()
        if self._model is not None:
            self._model = None
            self.layers, self._cache, self._states, self._marks = [], [], (), Marks()
            mx.clear_cache()

    def _last(self, ids: list[int]) -> NDArray[np.float32]:
        for hidden in self._chunks(ids):
            last = hidden
        logits: NDArray[np.float32] = self._logits(last[:, -1:])[0]
        return logits

    def _chunks(self, ids: list[int]) -> Iterator[mx.array]:
        """Yield the hidden state of each chunk: [1, tokens, hidden size], evaluated, in the activations' type."""
        for start in range(0, len(ids), self._chunk):
            self._check_cancelled()
            chunk = ids[start : start + self._chunk]
            hidden = self._model.hidden([(chunk, self.layers)])
            mx.eval(hidden, self.arrays())
            if len(chunk) > 1:  # scores of a longer context would not fit in what those of this one leave
                mx.clear_cache()
            yield hidden
        self._check_cancelled()

    def _logits(self, hidden: mx.array) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = np.array(self._model.logits(hidden)[0])
        return logits

    def _run(self, count: int, work: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        before = self.length
        if count > 1:  # a prompt, or guesses
            self.mark()
        with self._lock:
            self._running, self._cancelled = True, False
        try:
            with mx.stream(self._device):
                logits = work()
        except Cancelled:
            self.rewind(before)
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineError(f"mlx failed after {before} tokens: {error}") from error
        finally:
            with self._lock:
                self._running = False
        if count > 1:
            self.mark()
        return logits

    def mark(self) -> None:
        """Keep the states that cannot be cut, to come back to this length."""
        if self._states and self.length and self.length not in self._marks:
            self._marks.keep(self.length, [layer.state for layer in self._states])

    def _check_cancelled(self) -> None:
        with self._lock:
            if self._cancelled:
                raise Cancelled("The session was asked to stop.")

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        return admitted(tokens, n_vocab=self._n_vocab, length=self.length, context=self._context)

    def _check_owner(self) -> None:
        self._check_thread()
        if self._model is None:
            raise EngineError("The session is closed.")

    def _check_thread(self) -> None:
        if current_thread() is not self._owner:
            raise EngineError(
                f"An mlx session belongs to the thread that opened it, {self._owner.name}, "
                f"and was called from {current_thread().name}."
            )


class HiddenSession(WithoutHead, MlxSession):
    """See ``edgepack.runtime.Hidden``."""

    def hidden(self, tokens: Sequence[int], first: int = 0) -> NDArray[np.float32]:
        """Append tokens and return the states after each from ``first`` on: float32 [n_tokens - first, hidden size]."""
        ids = self._admit(tokens)
        check_first(first, len(ids))
        return self._run(len(ids), lambda: np.concatenate([*map(_numbers, self._chunks(ids))])[first:])


def _numbers(states: mx.array) -> NDArray[np.float32]:
    return np.array(states[0].astype(mx.float32))
