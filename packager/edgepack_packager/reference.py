"""The reference: a decoder in numpy float32. This is what "the same model" means for every target and every engine.

It reads the weights in blocks of rows and holds one block at a time. Names of shapes: r readings, n positions, h hidden
size, d head dimension. Products go through BLAS in one thread: OpenBLAS's others spin between them, and on two cores
320 tokens of a model of 135 M parameters took 14 processor seconds with two threads and 4 with one, beside other work.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from edgepack.bundle.decoder import Attention, Temperature
from edgepack.bundle.rope import Rope
from edgepack.errors import UsageError
from edgepack_packager.arithmetic import FASTEST, Arithmetic
from edgepack_packager.checkpoint.weights import Float32, Weights, row_blocks
from edgepack_packager.targets.kv_cache import Cache, Part

HEADROOM = 1.6
"""What a key or value may exceed those that were measured by, before it is cut. On the text of the proof's probe
SmolLM2 loses 5.2, 4.1 and 5.0 thousandths of a nat with 1.25, 1.6 and 2."""
_TINY = np.float32(1e-30)

Rounding = Callable[[str, Float32], Float32]
"""What an engine makes of the inputs of the product with a named matrix: float32 [n, columns], the same shape."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What an engine rounds where it reads a model: nothing, as the reference does.

    ``cache`` rounds q, k, v and the attention's result, as an engine does for its KV cache; ``rounding`` rounds the
    inputs of every product. Several readings of the same weights take one pass over them.
    """

    cache: Cache | None = None
    rounding: Rounding | None = None


EXACT = Reading()


def logits(
    weights: Weights, ids: Sequence[int], progress: Callable[[], None] | None = None, *, cache: Cache | None = None
) -> Float32:
    """Return the logits after each of the token ids, which take the positions from 0: float32 [n, n_vocab].

    Arguments and errors as in ``hidden``.
    """
    return head(weights, hidden(weights, ids, progress, readings=[Reading(cache)])[0])


def hidden(
    weights: Weights,
    ids: Sequence[int],
    progress: Callable[[], None] | None = None,
    *,
    readings: Sequence[Reading] = (EXACT,),
) -> Float32:
    """Return the normed states after the last layer, from which ``head`` makes logits: float32 [r, n, h].

    ``progress`` is called after each layer. Memory: a block of weights, some [r n, intermediate] and [n, n] arrays.
    Raises ``UsageError`` for ids outside the embedding.
    """
    return _states(weights, [ids] * len(readings), readings, progress)


def observe(
    weights: Weights,
    texts: Sequence[Sequence[int]],
    see: Callable[[str, Float32], None],
    progress: Callable[[], None] | None = None,
    arithmetic: Arithmetic = FASTEST,
    together: int | None = None,
) -> None:
    """Show ``see`` what every matrix is multiplied with: its name, and float32 [n, columns] for each text in turn.

    ``texts`` are token ids, as many in each. So many of them, ``together``, pass a layer at a time (None: all), and all
    have passed it before any enters the next. ``arithmetic`` computes all of it. Other arguments, memory and errors as
    in ``hidden``; ``progress`` is called whenever some have passed a layer.
    """

    def shown(name: str, inputs: Float32) -> Float32:
        see(name, inputs)
        return inputs

    readings = [Reading(rounding=shown)] * len(texts)
    for states in _states(weights, texts, readings, progress, arithmetic, together):
        see("embedding" if weights.decoder.tied else "head", states)


def _states(
    weights: Weights,
    texts: Sequence[Sequence[int]],
    readings: Sequence[Reading],
    progress: Callable[[], None] | None,
    arithmetic: Arithmetic = FASTEST,
    together: int | None = None,
) -> Float32:
    """Return the normed states of each text in its reading: float32 [r, n, h]."""
    decoder = weights.decoder
    for ids in texts:
        if not len(ids) or min(ids) < 0 or max(ids) >= decoder.n_vocab:
            raise UsageError(f"The reference needs token ids from 0 to {decoder.n_vocab - 1}, and at least one.")
    report = progress or (lambda: None)
    step = together or len(texts)
    runs = [slice(start, start + step) for start in range(0, len(texts), step)]
    models = [_Model(weights, readings[run], arithmetic) for run in runs]
    rows = {i: weights.rows("embedding", i, i + 1)[0] for i in {i for ids in texts for i in ids}}
    x = np.array([[rows[i] for i in ids] for ids in texts], np.float32) * np.float32(decoder.embedding_scale)
    with threadpool_limits(limits=1, user_api="blas"):
        for layer, (model, run) in product(range(decoder.n_layers), zip(models, runs, strict=True)):
            _attention(model, layer, x[run])
            _mlp(model, layer, x[run])
            report()
    return models[0].norm("norm", x)


def head(weights: Weights, states: Float32) -> Float32:
    """Return the logits of states, float32 [n, h]: float32 [n, n_vocab]. It reads the whole head for any number."""
    return np.concatenate([found[0] for _, found in columns(weights, states[None])], axis=1)


def columns(weights: Weights, states: Float32, readings: Sequence[Reading] = (EXACT,)) -> Iterator[tuple[int, Float32]]:
    """Yield the logits of states, float32 [r, n, h], for some tokens of the vocabulary at a time.

    With the first of these tokens: float32 [r, n, tokens]. It reads the head once.
    """
    model = _Model(weights, readings)
    with threadpool_limits(limits=1, user_api="blas"):
        for start, products in model.products("embedding" if model.decoder.tied else "head", states):
            scaled = _scaled(products, model.decoder.logits_scale)
            yield start, _softcap(model.by, scaled, model.decoder.logits_softcap)


def cache_scales(
    weights: Weights,
    ids: Sequence[int],
    progress: Callable[[], None] | None = None,
    arithmetic: Arithmetic = FASTEST,
) -> dict[str, Float32]:
    """Return a scale for each channel of the keys and values, by ``layers.0.attention.k``: float32 [KV heads, d].

    It is ``HEADROOM`` times the largest magnitude over the ids, by 127. Two numbers of a key that a rope turns into
    each other share the length of their pair, which no position changes: a few hundred ids stand for a long context.
    Arguments and errors as in ``observe``.
    """
    decoder = weights.decoder
    scales: dict[str, Float32] = {}

    def measure(layer: int, part: Part, x: Float32) -> Float32:
        if part in ("k", "v"):
            rope = decoder.attention(layer).rope if part == "k" else None
            largest = _lengths(x, rope.dim // 2 if rope else 0).max(axis=0)
            scales[f"layers.{layer}.attention.{part}"] = np.maximum(largest * np.float32(HEADROOM / 127), _TINY)
        return x

    _states(weights, [ids], [Reading(measure)], progress, arithmetic)
    return scales


def _lengths(x: Float32, half: int) -> Float32:
    """Return magnitudes [n, heads, d]: that of the pair for each element below ``2 * half``, which is turned."""
    first, second, rest = np.split(np.abs(x), [half, 2 * half], axis=-1)
    pairs = np.sqrt(np.square(first) + np.square(second))
    return np.concatenate([pairs, pairs, rest], axis=-1)


class _Model:
    """The two operations that have weights, what is rounded, and ``by`` what arithmetic all is computed."""

    def __init__(self, weights: Weights, readings: Sequence[Reading], by: Arithmetic = FASTEST) -> None:
        self.by = by
        self.weights = weights
        self.readings = readings
        self.decoder = weights.decoder
        self.shapes = dict(weights.decoder.tensors())

    def linear(self, name: str, x: Float32) -> Float32:
        """x W^T + b, or x W^T for a decoder without this bias."""
        rows = self.shapes[name][0]
        result = np.empty((*x.shape[:-1], rows), dtype=np.float32)
        for start, products in self.products(name, x):
            result[..., start : start + products.shape[-1]] = products
        if f"{name}.bias" in self.shapes:
            result += self.weights.rows(f"{name}.bias", 0, rows)
        return result

    def products(self, name: str, x: Float32) -> Iterator[tuple[int, Float32]]:
        """Yield x W^T for a block of W's rows at a time, with the first of them: each row is read once."""
        pairs = zip(self.readings, x, strict=True)
        rounded = [reading.rounding(name, one) if reading.rounding else one for reading, one in pairs]
        inputs = np.concatenate(rounded)
        for start, stop in row_blocks(self.shapes[name]):
            products = self.by.product(inputs, self.weights.rows(name, start, stop))
            yield start, products.reshape(*x.shape[:-1], stop - start)

    def norm(self, name: str, x: Float32) -> Float32:
        """RMSNorm over the last axis: w x / sqrt(mean(x^2) + eps)."""
        mean = self.by.total(np.square(x)) / np.float32(x.shape[-1])
        normed: Float32 = x / np.sqrt(mean + np.float32(self.decoder.norm_eps))
        return normed * self.weights.rows(name, 0, x.shape[-1])

    def entered(self, layer: int, block: str, x: Float32) -> Float32:
        """What a block reads of the states: their norm, where the layer has one before its blocks."""
        return self.norm(f"{block}.norm", x) if self.decoder.layer(layer).pre_norms else x

    def left(self, layer: int, block: str, output: Float32) -> Float32:
        """What is added of a block's output: its norm, where the layer has one behind its blocks, and scaled."""
        kind = self.decoder.layer(layer)
        output = self.norm(f"{block}.post_norm", output) if kind.post_norms else output
        return _scaled(output, kind.residual_scale)

    def cache(self, layer: int, part: Part, x: Float32) -> Float32:
        """What the KV cache of each reading makes of a part of a layer's attention: [r, n, heads, d]."""
        if not any(reading.cache for reading in self.readings):
            return x
        return np.stack(
            [
                reading.cache(layer, part, one) if reading.cache else one
                for reading, one in zip(self.readings, x, strict=True)
            ]
        )


def _attention(model: _Model, layer: int, x: Float32) -> None:
    """Add causal attention with grouped heads: each key and value head serves n_heads / n_kv_heads query heads."""
    attention, (r, n, _), name = model.decoder.attention(layer), x.shape, f"layers.{layer}.attention"

    def normed(q: Float32, k: Float32) -> tuple[Float32, Float32]:
        return model.norm(f"{name}.q_norm", q), model.norm(f"{name}.k_norm", k)

    inputs = model.entered(layer, name, x)
    q, k, v = (model.linear(f"{name}.{part}", inputs) for part in ("q", "k", "v"))
    if attention.qk_norm == "width":
        q, k = normed(q, k)
    q, k, v = (part.reshape(r, n, -1, attention.head_dim) for part in (q, k, v))
    if attention.qk_norm == "head":
        q, k = normed(q, k)
    if attention.rope:
        rotation = _rotation(model.by, attention.rope, n)
        q, k = _rotate(q, *rotation), _rotate(k, *rotation)
    if attention.qk_norm == "rotated":
        q, k = normed(q, k)
    if attention.temperature:
        q = q * _growth(attention.temperature, n)
    q, k, v = model.cache(layer, "q", q), model.cache(layer, "k", k), model.cache(layer, "v", v)
    mixed = np.empty_like(q)
    hidden = _hidden_positions(n, attention.window)
    scale = np.float32(attention.score_scale)
    for i, (head, kv_head) in product(range(r), _heads(attention)):
        scores = model.by.product(q[i, :, head], k[i, :, kv_head]) * scale
        scores = _softcap(model.by, scores, attention.softcap)
        scores[hidden] = -np.inf
        mixed[i, :, head] = model.by.product(_softmax(model.by, scores), v[i, :, kv_head].T)
    x += model.left(layer, name, model.linear(f"{name}.o", model.cache(layer, "mixed", mixed).reshape(r, n, -1)))


def _hidden_positions(n: int, window: int | None) -> NDArray[np.bool_]:
    """Return what row i must not see: columns after i, and those that are ``window`` or more before it: [n, n]."""
    before = np.subtract.outer(np.arange(n), np.arange(n))
    return before < 0 if window is None else (before < 0) | (before >= window)


def _heads(attention: Attention) -> Iterator[tuple[int, int]]:
    """Yield every query head with the key and value head that it reads."""
    for head in range(attention.n_heads):
        yield head, head * attention.n_kv_heads // attention.n_heads


def _mlp(model: _Model, layer: int, x: Float32) -> None:
    """Add down(activation(gate(x)) * up(x))."""
    mlp, name = model.decoder.layer(layer).mlp, f"layers.{layer}.mlp"
    inputs = model.entered(layer, name, x)
    gate = model.linear(f"{name}.gate", inputs)
    inner = _silu(model.by, gate) if mlp.activation == "silu" else _gelu_tanh(model.by, gate)
    inner *= model.linear(f"{name}.up", inputs)
    x += model.left(layer, name, model.linear(f"{name}.down", inner))


def _rotation(by: Arithmetic, rope: Rope, n: int) -> tuple[Float32, Float32]:
    """Return the cosine and the sine of every position's angles, times the rope's magnitude: [n, 1, dim / 2] each."""
    positions = np.arange(n, dtype=np.float32)
    angles = (positions[:, None] * rope.frequencies())[:, None, :]
    magnitude = np.float32(rope.magnitude)
    return by.cos(angles) * magnitude, by.sin(angles) * magnitude


def _growth(temperature: Temperature, n: int) -> Float32:
    """Return what the query of each position is multiplied by: float32 [n, 1, 1]."""
    times = np.arange(n) // temperature.length
    return np.array([1 + temperature.beta * math.log(1 + each) for each in times], np.float32)[:, None, None]


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotate element i of each head with element i + dim/2, and leave those from dim on: x is [n, heads, d]."""
    half = cos.shape[-1]
    first, second, rest = np.split(x, [half, 2 * half], axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin, rest], axis=-1)


def _scaled(x: Float32, scale: float) -> Float32:
    return x if scale == 1 else x * np.float32(scale)


def _softcap(by: Arithmetic, x: Float32, cap: float | None) -> Float32:
    """cap tanh(x / cap), or x without a cap."""
    return x if cap is None else by.tanh(x / np.float32(cap)) * np.float32(cap)


def _gelu_tanh(by: Arithmetic, x: Float32) -> Float32:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 (arXiv:1606.08415)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    result: Float32 = np.float32(0.5) * x * (1 + by.tanh(inner))
    return result


def _silu(by: Arithmetic, x: Float32) -> Float32:
    """x / (1 + exp(-x)); exp overflows to infinity for a very negative x, whose limit is 0."""
    result: Float32 = x / (1 + by.exp(-x))
    return result


def _softmax(by: Arithmetic, scores: Float32) -> Float32:
    """Softmax over the last axis."""
    weights = by.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= by.total(weights)
    return weights
