"""A loaded model and its KV cache: one buffer for each layer's keys and values, in which the engine works in place."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np
from numpy.typing import NDArray

from edgepack import snapshot
from edgepack.admission import admitted
from edgepack.bundle.decoder import Decoder
from edgepack.device.memory import kv_bytes
from edgepack.errors import Cancelled, ContextTooLargeError, EngineError
from edgepack.runtime import Options
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.onnx.cache import DTYPES, Cache, Numbers
from edgepack_runtimes.onnx.check import GRAPH_FILE, check, other_cache
from edgepack_runtimes.onnx.pool import Pool
from edgepack_runtimes.threads import Threads, Watch

Float32 = NDArray[np.float32]


class OnnxSession:
    """See ``edgepack.runtime.Session``.

    The caches are bound once, and stay on the device. The other inputs and the logits are this session's memory, bound
    again at each step: an input of a GPU is copied to it then. A cancel stops the engine between two operators.
    """

    def __init__(self, variant: Path, decoder: Decoder, options: Options, device: str) -> None:
        if options.context > decoder.context:
            raise ContextTooLargeError(
                f"A context of {options.context} exceeds the {decoder.context} positions that the variant covers."
            )
        check(variant, decoder, options.kv_cache)
        engine.load()
        from onnxruntime import RunOptions

        self._decoder = decoder
        self._options = options
        self._facts = snapshot.facts("onnx", decoder, options.kv_cache)
        self._owner = threading.get_ident()
        self._length = 0
        self._lock = threading.RLock()  # re-entrant, because a signal handler may cancel while inside
        self._running = False
        self._cancelled = False
        self._run_options = RunOptions()
        self._run_options.log_severity_level = 4
        watch = Watch()
        self._engine = engine.start(variant / GRAPH_FILE, options.threads, device, spin=options.spin is not False)
        # Where it was said what they do while they wait, and on a GPU, they stay as many as they are.
        self._threads = Threads(options.threads, watch.free) if options.spin is None and device == "cpu" else None
        self._pool = Pool(self._engine, options.threads)
        self._check_signature(variant / GRAPH_FILE)
        self._binding = self._engine.io_binding()
        self._caches = self._bind_caches(device)
        self._ids = np.zeros(max(1, min(options.chunk, options.context)), np.int64)
        self._mask = np.ones(options.context, np.int64)
        self._start = np.zeros(1, np.int64)

    @property
    def device(self) -> str:
        """What the graph runs on, by the provider that the engine assigned its operators to."""
        used = {provider for _, provider in engine.assigned(self._engine)}
        return "cuda" if used == {engine.PROVIDERS["cuda"]} else "cpu"

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

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, which are all kept: what is behind them is written over later.

        A layer with a window holds the whole context too: onnxruntime's GroupQueryAttention reads its cache from the
        first position on, whatever the window hides.
        """
        self._check_use()
        if not 0 <= length <= self._length:
            raise ValueError(f"The cache holds {self._length} tokens; it cannot be rewound to {length}.")
        self._length = length
        return length

    def snapshot(self) -> bytes:
        """Return the keys and values of each layer, [KV heads, length, head dimension], sealed."""
        self._check_use()
        return snapshot.seal(self._facts, self._length, [each.read(self._length).tobytes() for each in self._caches])

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was."""
        self._check_use()
        length, payload = snapshot.unseal(state, self._facts, self._options.context)
        shape = (len(self._caches), self._decoder.n_kv_heads, length, self._decoder.head_dim)
        values: Numbers = np.frombuffer(payload, DTYPES[self._options.kv_cache]).reshape(shape)
        for cache, saved in zip(self._caches, values, strict=True):
            cache.write(saved)
        self._length = length

    def cancel(self) -> None:
        """Stop a forward that is running, from any thread."""
        with self._lock:
            if self._running:
                self._cancelled = True
                self._run_options.terminate = True

    def close(self) -> None:
        """Free the engine's memory."""
        if self._caches:
            self._check_use()
            self._caches = []
            self._pool.close()
            del self._binding, self._pool, self._engine

    def _evaluate(self, ids: list[int], logits: Float32) -> None:
        """Append ids in chunks and fill ``logits`` [rows, n_vocab] with those after the last ``rows`` ids.

        A chunk before these positions computes no logits at all.
        """
        before, wanted = self._length, len(ids) - len(logits)
        with self._interruptible():
            try:
                for start in range(0, len(ids), len(self._ids)):
                    chunk = ids[start : start + len(self._ids)]
                    skipped = min(max(wanted - start, 0), len(chunk))
                    first = max(start - wanted, 0)
                    self._step(chunk, skipped, logits[first : first + len(chunk) - skipped])
            except BaseException:
                self._length = before
                raise

    def _step(self, ids: list[int], start: int, logits: Float32) -> None:
        if self._cancelled:
            raise Cancelled("The evaluation was cancelled.")
        count = len(ids)
        self._ids[:count] = ids
        self._start[0] = start
        self._bind_input("input_ids", self._ids, (1, count))
        self._bind_input("attention_mask", self._mask, (1, self._length + count))
        self._bind_input("logits_start", self._start, (1,))
        # An empty output is bound too, to an address that is never written.
        target = logits if len(logits) else self._start
        shape = (1, len(logits), self._decoder.n_vocab)
        self._binding.bind_output("logits", "cpu", 0, np.float32, shape, target.ctypes.data)
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
        self._length += count

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

    def _admit(self, tokens: Sequence[int]) -> list[int]:
        self._check_use()
        return admitted(tokens, n_vocab=self._decoder.n_vocab, length=self._length, context=self._options.context)

    def _check_use(self) -> None:
        if not self._caches:
            raise EngineError("The session is closed.")
        if threading.get_ident() != self._owner:
            raise EngineError("A session belongs to the thread that opened it; only cancel may come from another.")

    def _check_signature(self, path: Path) -> None:
        """The graph must be this decoder's: the buffers below are made to the decoder's measure."""
        decoder = self._decoder
        nodes = (*self._engine.get_inputs(), *self._engine.get_outputs())
        shapes = {node.name: node.shape for node in nodes}
        shapes |= {node.name: node.shape for node in self._engine.get_overridable_initializers()}
        cache = (decoder.n_kv_heads, decoder.head_dim)
        wanted: dict[str, tuple[int, ...]] = {"logits": (decoder.n_vocab,)}
        wanted |= {name: cache for names in _cache_names(decoder) for name in names}
        wanted |= {"input_ids": (), "attention_mask": (), "logits_start": (1,)}
        found = {name: tuple(size for size in shape if isinstance(size, int)) for name, shape in shapes.items()}
        if found != wanted:
            names = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
            raise EngineError(f"{path} is not the graph of this decoder: {names[0]} differs.", hint="Build it again.")
        built_in = {"tensor(float)": "f32", "tensor(float16)": "f16", "tensor(int8)": "q8"}
        for node in nodes:
            if wanted[node.name] == cache and built_in.get(node.type) != self._options.kv_cache:
                raise EngineError(
                    f"{path} has no KV cache of {self._options.kv_cache}: {node.name} is a {node.type}.",
                    hint=other_cache(self._options.kv_cache),
                )

    def _bind_caches(self, device: str) -> list[Cache]:
        decoder, context = self._decoder, self._options.context
        shape = (1, decoder.n_kv_heads, context, decoder.head_dim)
        owner = "system" if device == "cpu" else "GPU"
        caches = []
        for past, present in _cache_names(decoder):
            try:
                cache = Cache(shape, self._options.kv_cache, device)
            except (MemoryError, RuntimeError):
                size = kv_bytes(decoder, "onnx", self._options.kv_cache, context)
                raise ContextTooLargeError(
                    f"The KV cache of {context} tokens needs {size} bytes, which the {owner} does not grant.",
                    hint="Load the model with a smaller context.",
                ) from None
            cache.bind(self._binding, past, present)
            caches.append(cache)
        return caches

    def _bind_input(self, name: str, array: NDArray[np.generic], shape: tuple[int, ...]) -> None:
        self._binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


def _cache_names(decoder: Decoder) -> Iterator[tuple[str, str]]:
    for layer in range(decoder.n_layers):
        for part in ("key", "value"):
            yield f"past_key_values.{layer}.{part}", f"present.{layer}.{part}"
