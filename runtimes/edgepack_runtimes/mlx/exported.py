"""A session of a model that mlx-lm has a class for, from a payload that mlx-lm spelled: its model code, and its cache.

What the folder may hold is checked before mlx-lm sees it: a class that comes with mlx-lm and no other code, and weights
of the names and shapes that the class has.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from threading import RLock, current_thread
from typing import Any, Final

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from edgepack import snapshot
from edgepack.bundle.decoder import Decoder
from edgepack.errors import ContextTooLargeError, EngineError, EngineMissingError
from edgepack.runtime import Options
from edgepack_runtimes.mlx.payload import read_header, read_object
from edgepack_runtimes.mlx.session import MlxSession

WEIGHTS: Final = "model.safetensors"
_PASSED_OVER: Final = ("model_file", "quantization", "quantization_config", "text_config")
_HINT: Final = "Build the variant again."


def open_exported(variant: Path, decoder: Decoder, options: Options) -> ExportedSession:
    """Check and load a variant on the calling thread.

    Raises ``EngineMissingError`` without mlx-lm, ``EngineError`` with the reason.
    """
    if options.context > decoder.context:
        raise ContextTooLargeError(
            f"A context of {options.context} exceeds the {decoder.context} positions that the variant covers."
        )
    config = read_object(variant / "config.json")
    kind = config.get("model_type")
    odd = next((field for field in _PASSED_OVER if field in config), None)
    if kind != decoder.family or odd or not re.fullmatch(r"[a-z0-9_]{1,40}", decoder.family):
        what = f"the field {odd}" if odd else f"the model_type {kind!r}, and the manifest says {decoder.family!r}"
        raise EngineError(f"{variant / 'config.json'} has {what}.", hint=_HINT)
    header = read_header(variant / WEIGHTS)
    classes = _classes(decoder.family)
    device = mx.Device(mx.gpu if mx.metal.is_available() else mx.cpu)
    try:
        with mx.stream(device):
            model = classes.Model(classes.ModelArgs.from_dict(config))
            wanted = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
            found = {name: tensor.shape for name, tensor in header.items() if tensor.dtype == "F32"}
            if wanted != found:
                names = sorted(name for name in {*wanted, *found} if wanted.get(name) != found.get(name))
                raise EngineError(f"{variant / WEIGHTS} is not mlx-lm's {kind}: {names[0]} differs.", hint=_HINT)
            weights: Any = mx.load(str(variant / WEIGHTS), format="safetensors")
            model.load_weights(list(weights.items()), strict=True)
            model.eval()
            mx.eval(model.parameters())
            return ExportedSession(model, decoder, options, device)
    except (ArithmeticError, AttributeError, KeyError, MemoryError, RuntimeError, TypeError, ValueError) as error:
        if isinstance(error, EngineError):
            raise
        raise EngineError(f"mlx-lm cannot load {variant}: {error}") from None


def _classes(model_type: str) -> Any:
    try:
        return import_module(f"mlx_lm.models.{model_type}")
    except ModuleNotFoundError as error:
        if error.name != f"mlx_lm.models.{model_type}":
            lacking = (error.name or "mlx_lm").partition(".")[0]
            raise EngineMissingError(
                f"This variant is run by mlx-lm's model code, and {lacking} is not installed.",
                hint="Install it with: pip install 'mlx-lm>=0.32.2,<0.33'",
            ) from None
        raise EngineError(f"mlx-lm has no model of the type {model_type!r}.", hint="Upgrade mlx-lm.") from None


class ExportedSession(MlxSession):
    """See ``edgepack.runtime.Session``. mlx-lm's cache holds every position: a rewind keeps what it is asked to."""

    def __init__(self, model: Any, decoder: Decoder, options: Options, device: mx.Device) -> None:
        from mlx_lm.models.cache import KVCache, make_prompt_cache

        self._model = model
        self._n_vocab = decoder.n_vocab
        self._context = options.context
        self._chunk = options.chunk
        self._device = device
        self._facts = snapshot.facts("mlx-lm", decoder, "float32")
        self._owner = current_thread()
        self._cache: list[Any] = make_prompt_cache(model)
        attention = decoder.attentions[0]
        self._heads = attention.n_kv_heads, attention.head_dim
        self._lock = RLock()
        self._running = False
        self._cancelled = False
        if len(self._cache) != decoder.n_layers or {type(each) for each in self._cache} != {KVCache}:
            raise EngineError(f"mlx-lm keeps another cache of {decoder.family} than one for each layer.", hint=_HINT)

    def rewind(self, length: int) -> int:
        """Forget all but the first ``length`` tokens, which are all kept."""
        if not 0 <= length <= self.length:
            raise ValueError(f"cannot rewind to {length}: the cache holds {self.length} tokens")
        for layer in self._cache:
            layer.trim(layer.offset - length)
        return length

    def snapshot(self) -> bytes:
        """Return the keys and values of each layer, float32 [KV heads, tokens, head dimension], sealed."""
        length = self.length
        parts = [np.array(part).tobytes() for layer in self._cache if length for part in layer.keys_and_values()]
        return snapshot.seal(self._facts, length, parts)

    def restore(self, state: bytes) -> None:
        """Replace the cache with a snapshot. Raises ``ValueError`` with the cache as it was."""
        self._check_owner()
        length, payload = snapshot.unseal(state, self._facts, self._context)
        heads, size = self._heads
        values = np.frombuffer(payload, np.float32).reshape(len(self._cache), 2, 1, heads, length, size)
        with mx.stream(self._device):
            for layer, (keys, held) in zip(self._cache, values, strict=True):
                layer.state = (mx.array(keys), mx.array(held), length) if length else (None, None, 0)

    def _chunks(self, ids: list[int]) -> Iterator[mx.array]:
        """Yield the logits of each chunk: float32 [1, tokens, n_vocab], evaluated."""
        for start in range(0, len(ids), self._chunk):
            self._check_cancelled()
            logits = self._model(mx.array([ids[start : start + self._chunk]]), cache=self._cache)
            if logits.shape[-1] != self._n_vocab or logits.dtype != mx.float32:
                raise EngineError(f"mlx-lm's model has logits of {logits.shape[-1]} in {logits.dtype}.", hint=_HINT)
            if any((layer.keys.shape[1], layer.keys.shape[3]) != self._heads for layer in self._cache):
                raise EngineError("mlx-lm's model has other KV heads than the manifest says.", hint=_HINT)
            mx.eval(logits, [layer.keys_and_values() for layer in self._cache])
            yield logits
        self._check_cancelled()

    def _logits(self, hidden: mx.array) -> Any:
        return np.array(hidden[0])
