"""A session of mlx: the model of mlx-lm's own file, an own KV cache, and the seam's rules.

MLX's streams belong to the thread that made them, so the thread that opens a session runs and closes it. MLX cannot
stop an evaluation that runs: a cancel takes effect at the end of the chunk.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock, current_thread
from types import ModuleType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from numpy.typing import NDArray

from edgepack.decoder import Decoder
from edgepack.errors import Cancelled, EngineError, PromptTooLongError
from edgepack.runtime import Options
from edgepack_runtimes.mlx.payload import Payload, Tensor, read_payload

_MODELS = "_edgepack_mlx_lm_models"


def open_session(variant: Path, decoder: Decoder, options: Options) -> MlxSession:
    """Check and load a variant on the calling thread. Raises ``EngineError`` with the reason."""
    payload = read_payload(variant, decoder)
    device = mx.Device(mx.gpu if mx.metal.is_available() else mx.cpu)
    try:
        with mx.stream(device):
            model = _load(variant, payload)
            if payload.bits and options.kv_cache == "f32":
                model.set_dtype(mx.float32)
                mx.eval(model.parameters())
            return MlxSession(model, decoder, options, payload.float_type, device)
    except (RuntimeError, ValueError, MemoryError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"mlx cannot load {variant}: {error}") from None


def _load(variant: Path, payload: Payload) -> nn.Module:
    llama = _model_file("llama")
    model: nn.Module = llama.Model(llama.ModelArgs.from_dict(dict(payload.arguments)))
    quantized = {name.removesuffix(".scales") for name in payload.tensors if name.endswith(".scales")}
    if payload.bits:
        nn.quantize(model, payload.group, payload.bits, class_predicate=lambda path, _: path in quantized)
    _check_tensors(variant, payload, {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())})
    weights: dict[str, mx.array] = {}
    for file in payload.files:
        arrays: Any = mx.load(str(file), format="safetensors")
        weights |= arrays
    model.load_weights(list(weights.items()), strict=True)
    model.eval()
    mx.eval(model.parameters())
    return model


def _model_file(name: str) -> ModuleType:
    """Import a file of ``mlx_lm/models`` under a private package.

    ``import mlx_lm`` imports transformers, a second of work and a hundred megabytes that the model files do not need.
    """
    if _MODELS not in sys.modules:
        found = importlib.util.find_spec("mlx_lm")
        if found is None or not found.submodule_search_locations:
            raise EngineError("mlx-lm is not installed whole.", hint="Install it with: pip install 'edgepack[mlx]'")
        spec = importlib.machinery.ModuleSpec(_MODELS, loader=None, is_package=True)
        spec.submodule_search_locations = [str(Path(found.submodule_search_locations[0], "models"))]
        sys.modules[_MODELS] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module(f"{_MODELS}.{name}")
    except ImportError as error:
        raise EngineError(
            f"mlx-lm's model file {name}.py cannot be imported: {error}.",
            hint="Install the versions that edgepack asks for: pip install 'edgepack[mlx]'",
        ) from None


def _check_tensors(variant: Path, payload: Payload, expected: dict[str, tuple[int, ...]]) -> None:
    for name in sorted(expected.keys() | payload.tensors.keys()):
        packed = name.endswith(".weight") and f"{name.removesuffix('.weight')}.scales" in expected
        wanted = Tensor("U32" if packed else payload.float_type, expected[name]) if name in expected else None
        found = payload.tensors.get(name)
        if found != wanted:
            raise EngineError(
                f"{variant}: the tensor {name} is {_describe(found)}, expected {_describe(wanted)}.",
                hint="Build the variant again.",
            )


def _describe(tensor: Tensor | None) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}" if tensor else "none"


class LayerCache:
    """Keys and values of one layer, [1, KV heads, context, head dimension], in a type of their own.

    It is whole from the start: its memory is known when the model is loaded, and no step copies it.
    """

    def __init__(self, shape: tuple[int, int, int, int], dtype: mx.Dtype) -> None:
        self.offset = 0
        self.keys = mx.zeros(shape, dtype)
        self.values = mx.zeros(shape, dtype)

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append keys and values and return all so far, in the type that came in; mlx-lm's model files call it."""
        start, self.offset = self.offset, self.offset + keys.shape[2]
        self.keys[..., start : self.offset, :] = keys.astype(self.keys.dtype)
        self.values[..., start : self.offset, :] = values.astype(self.values.dtype)
        return (
            self.keys[..., : self.offset, :].astype(keys.dtype),
            self.values[..., : self.offset, :].astype(values.dtype),
        )

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> str | None:
        """Return mlx's name of the causal mask for ``n`` new tokens; one token alone sees all."""
        return "causal" if n > 1 else None


class MlxSession:
    """See ``edgepack.runtime.Session``. Every call but ``cancel`` must come from the thread that opened it."""

    def __init__(
        self, model: nn.Module, decoder: Decoder, options: Options, float_type: str, device: mx.Device
    ) -> None:
        self._model: Any = model
        self._n_vocab = decoder.n_vocab
        self._context = options.context
        self._chunk = options.chunk
        self._device = device
        self._owner = current_thread()
        shape = (1, decoder.n_kv_heads, options.context, decoder.head_dim)
        self._cache = [LayerCache(shape, _cache_type(options.kv_cache, float_type)) for _ in range(decoder.n_layers)]
        mx.eval([(layer.keys, layer.values) for layer in self._cache])
        self._lock = Lock()
        self._running = False
        self._cancelled = False

    @property
    def length(self) -> int:
        """Tokens in the KV cache."""
        self._check_owner()
        return self._cache[0].offset

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after the last: float32 [n_vocab]."""
        ids = self._check_tokens(tokens)
        return self._run(lambda: self._last(ids))

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append tokens and return the logits after each: float32 [n_tokens, n_vocab]."""
        ids = self._check_tokens(tokens)
        return self._run(lambda: np.concatenate([self._logits(hidden) for hidden in self._chunks(ids)]))

    def rewind(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        for layer in self._cache:
            layer.offset = length

    def cancel(self) -> None:
        """Stop a forward that is running, at the end of its chunk. From any thread."""
        with self._lock:
            self._cancelled = self._running

    def close(self) -> None:
        """Free the model and its cache."""
        self._check_thread()
        if self._model is not None:
            self._model = None
            self._cache = []
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
            hidden = self._model.model(mx.array([ids[start : start + self._chunk]]), self._cache)
            mx.eval(hidden, [(layer.keys, layer.values) for layer in self._cache])
            yield hidden
        self._check_cancelled()

    def _logits(self, hidden: mx.array) -> NDArray[np.float32]:
        model = self._model
        head = model.model.embed_tokens.as_linear if model.args.tie_word_embeddings else model.lm_head
        logits: NDArray[np.float32] = np.array(head(hidden)[0].astype(mx.float32))
        return logits

    def _run(self, work: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
        before = self.length
        with self._lock:
            self._running, self._cancelled = True, False
        try:
            with mx.stream(self._device):
                return work()
        except Cancelled:
            self.rewind(before)
            raise
        except (RuntimeError, ValueError, MemoryError) as error:
            raise EngineError(f"mlx failed after {before} tokens: {error}") from error
        finally:
            with self._lock:
                self._running = False

    def _check_cancelled(self) -> None:
        with self._lock:
            if self._cancelled:
                raise Cancelled("The session was asked to stop.")

    def _check_tokens(self, tokens: Sequence[int]) -> list[int]:
        length = self.length
        ids = [int(token) for token in tokens]
        if not ids:
            raise ValueError("there is no token to run")
        for token in ids:
            if not 0 <= token < self._n_vocab:
                raise ValueError(f"the token id {token} is outside the vocabulary of {self._n_vocab}")
        if length + len(ids) > self._context:
            raise PromptTooLongError(
                f"{length} tokens in the cache and {len(ids)} more exceed the context of {self._context}.",
                hint="Shorten the prompt, or load the model with a larger context.",
            )
        return ids

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


def _cache_type(kv_cache: str, float_type: str) -> mx.Dtype:
    if kv_cache == "f32":
        return mx.float32
    return mx.bfloat16 if float_type == "BF16" else mx.float16
