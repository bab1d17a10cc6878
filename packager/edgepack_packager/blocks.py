"""What a decoder's layers compute, a function for each kind of block, and the operations that have weights.

Names of shapes: r readings, n positions, h hidden size, d head dimension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Attention, Convolution, Delta, Temperature
from edgepack.bundle.rope import Rope
from edgepack_packager.arithmetic import FASTEST, Arithmetic
from edgepack_packager.checkpoint.weights import Float32, Weights, row_blocks
from edgepack_packager.targets.kv_cache import Cache, Part

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


class Model:
    """The two operations that have weights, what is rounded, and ``by`` what arithmetic all is computed.

    ``inputs`` are what the layers get of the tokens themselves, float32 [r, n, layers, size], where they get something.
    """

    def __init__(self, weights: Weights, readings: Sequence[Reading], by: Arithmetic = FASTEST) -> None:
        self.by = by
        self.weights = weights
        self.readings = readings
        self.decoder = weights.decoder
        self.shapes = dict(weights.decoder.tensors())
        self.inputs: Float32 | None = None
        self._read = {each.kv_layer for each in weights.decoder.attentions}
        self._kept: dict[int, tuple[Float32, Float32]] = {}

    def keep(self, layer: int, k: Float32, v: Float32) -> None:
        """Keep the keys and values of a layer for those that read them too, if there are any."""
        if layer in self._read:
            self._kept[layer] = k, v

    def kept(self, layer: int) -> tuple[Float32, Float32]:
        """Return the keys and values that a layer has kept."""
        return self._kept[layer]

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
        """RMSNorm over the last axis, w x / sqrt(mean(x^2) + eps); with a bias LayerNorm, which is of x - mean(x)."""
        size, gain = x.shape[-1], self.weights.rows(name, 0, x.shape[-1])
        if f"{name}.bias" not in self.shapes:
            return self.divided(x) * gain
        return self.divided(x - self.by.total(x) / np.float32(size)) * gain + self.weights.rows(f"{name}.bias", 0, size)

    def divided(self, x: Float32) -> Float32:
        """x / sqrt(mean(x^2) + eps), an RMSNorm without its gain."""
        mean = self.by.total(np.square(x)) / np.float32(x.shape[-1])
        normed: Float32 = x / np.sqrt(mean + np.float32(self.decoder.norm_eps))
        return normed

    def entered(self, layer: int, block: str, x: Float32) -> Float32:
        """What a block reads of the states: their norm, where the layer has one before its blocks."""
        return self.norm(f"{block}.norm", x) if self.decoder.layer(layer).pre_norms else x

    def left(self, layer: int, block: str, output: Float32) -> Float32:
        """What is added of a block's output: its norm, where the layer has one behind its blocks, and scaled."""
        kind = self.decoder.layer(layer)
        output = self.norm(f"{block}.post_norm", output) if kind.post_norms else output
        return scaled(output, kind.residual_scale)

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


def _attention(model: Model, layer: int, x: Float32) -> None:
    """Add causal attention with grouped heads: each key and value head serves n_heads / n_kv_heads query heads."""
    attention, (r, n, _), name = model.decoder.attention(layer), x.shape, f"layers.{layer}.attention"
    inputs = model.entered(layer, name, x)
    rotation = _rotation(model.by, attention.rope, n) if attention.rope else None

    def turned(part: str) -> Float32:
        made, norm = model.linear(f"{name}.{part}", inputs), f"{name}.{part}_norm"
        made = model.norm(norm, made) if attention.qk_norm == "width" else made
        made = made.reshape(r, n, -1, attention.head_dim)
        made = model.norm(norm, made) if attention.qk_norm == "head" else made
        made = _rotate(made, *rotation) if rotation else made
        return model.norm(norm, made) if attention.qk_norm == "rotated" else made

    q = turned("q")
    if attention.temperature:
        q = q * _growth(attention.temperature, n)
    q = model.cache(layer, "q", q)
    if isinstance(attention.kv_layer, int):
        k, v = model.kept(attention.kv_layer)
    else:
        k = model.cache(layer, "k", turned("k"))
        v = model.linear(f"{name}.v", inputs).reshape(k.shape)
        v = model.cache(layer, "v", model.divided(v) if attention.v_norm else v)
        model.keep(layer, k, v)
    mixed = np.empty_like(q)
    hidden = _hidden_positions(n, attention)
    scale = np.float32(attention.score_scale)
    for i, (head, kv_head) in product(range(r), _heads(attention)):
        scores = model.by.product(q[i, :, head], k[i, :, kv_head]) * scale
        scores = softcap(model.by, scores, attention.softcap)
        scores[hidden] = -np.inf
        mixed[i, :, head] = model.by.product(_softmax(model.by, scores), v[i, :, kv_head].T)
    result = model.cache(layer, "mixed", mixed)
    if attention.gated:
        opened = _sigmoid(model.by, model.linear(f"{name}.gate", inputs))
        result = result * opened.reshape(r, n, attention.n_heads, -1)
    x += model.left(layer, name, model.linear(f"{name}.o", result.reshape(r, n, -1)))


def _convolution(model: Model, layer: int, x: Float32) -> None:
    """Add out(c * conv(b * x)): of each channel, the sum of its kernel's numbers times the last positions' b * x."""
    length, name = model.decoder.convolving[layer].length, f"layers.{layer}.convolution"
    b, c, values = np.split(model.linear(f"{name}.in", model.entered(layer, name, x)), 3, axis=-1)
    mixed = _convolved(model, f"{name}.kernel", b * values, length)
    if f"{name}.kernel.bias" in model.shapes:
        mixed += model.weights.rows(f"{name}.kernel.bias", 0, mixed.shape[-1])
    x += model.left(layer, name, model.linear(f"{name}.out", c * mixed))


def _convolved(model: Model, kernel: str, x: Float32, length: int) -> Float32:
    """Return the sum over the last ``length`` positions of each channel [r, n, channels] times its kernel's numbers."""
    before = np.pad(x, ((0, 0), (length - 1, 0), (0, 0)))
    taps = model.weights.rows(kernel, 0, model.shapes[kernel][0]).reshape(-1, length)
    mixed = np.zeros_like(x)
    for tap in range(length):
        mixed += before[:, tap : tap + x.shape[1]] * taps[:, tap]
    return mixed


def _delta(model: Model, layer: int, x: Float32) -> None:
    """Add out(norm(S^T q) * silu(z)), where S follows the gated delta rule from position to position."""
    delta, (r, n, _), name, by = model.decoder.correcting[layer], x.shape, f"layers.{layer}.delta", model.by

    def vector(part: str) -> Float32:
        return model.weights.rows(f"{name}.{part}", 0, delta.n_value_heads)

    inputs = model.entered(layer, name, x)
    mixed = _silu(by, _convolved(model, f"{name}.kernel", model.linear(f"{name}.qkv", inputs), delta.length))
    q, k, v = np.split(mixed, [delta.key_size, 2 * delta.key_size], axis=-1)
    q, k = (part.reshape(r, n, delta.n_key_heads, delta.key_dim) for part in (q, k))
    q, k = (part / np.sqrt(by.total(np.square(part)) + np.float32(1e-6)) for part in (q, k))
    shared = delta.n_value_heads // delta.n_key_heads
    q, k = (np.repeat(part, shared, axis=2) for part in (q * np.float32(delta.key_dim**-0.5), k))
    v = v.reshape(r, n, delta.n_value_heads, delta.value_dim)
    a, b = (model.linear(f"{name}.{part}", inputs) for part in ("a", "b"))
    decay = by.exp(-by.exp(vector("decay")) * _softplus(by, a + vector("step")))[..., None, None]
    rate = _sigmoid(by, b)[..., None]
    state: Float32 = np.zeros((r, delta.n_value_heads, delta.value_dim, delta.key_dim), np.float32)
    found = np.empty_like(v)
    for position in range(n):
        state *= decay[:, position]
        known = by.total(state * k[:, position, :, None])[..., 0]
        correction = (v[:, position] - known) * rate[:, position]
        state += correction[..., None] * k[:, position, :, None]
        found[:, position] = by.total(state * q[:, position, :, None])[..., 0]
    z = model.linear(f"{name}.z", inputs).reshape(found.shape)
    gated = model.norm(f"{name}.head_norm", found) * _silu(by, z)
    x += model.left(layer, name, model.linear(f"{name}.out", gated.reshape(r, n, -1)))


def _hidden_positions(n: int, attention: Attention) -> NDArray[np.bool_]:
    """Return what row i must not see: columns after i, and those that are a window or more before it: [n, n].

    A bidirectional attention sees those after it too, within a window on both sides.
    """
    before = np.subtract.outer(np.arange(n), np.arange(n))
    away = np.abs(before) if attention.bidirectional else before
    far = np.zeros_like(before, bool) if attention.window is None else away >= attention.window
    return far if attention.bidirectional else far | (before < 0)


def _heads(attention: Attention) -> Iterator[tuple[int, int]]:
    """Yield every query head with the key and value head that it reads."""
    for head in range(attention.n_heads):
        yield head, head * attention.n_kv_heads // attention.n_heads


MIXERS: Mapping[type, Callable[[Model, int, Float32], None]] = MappingProxyType(
    {Attention: _attention, Convolution: _convolution, Delta: _delta}
)
"""What each type of mixer adds to the states [r, n, h] of a layer."""


def mlp(model: Model, layer: int, x: Float32) -> None:
    """Add down(activation(gate(x)) * up(x))."""
    name = f"layers.{layer}.mlp"
    inputs = model.entered(layer, name, x)
    inner = _activated(model, layer, model.linear(f"{name}.gate", inputs))
    inner *= model.linear(f"{name}.up", inputs)
    x += model.left(layer, name, model.linear(f"{name}.down", inner))


def token_inputs(model: Model, rows: Float32, x: Float32) -> Float32:
    """Return what each layer gets of tokens, of their rows of ``inputs.embedding`` and their scaled embeddings."""
    size, hidden = model.decoder.inputs, x.shape[-1]
    projected = model.linear("inputs.projection", x) * np.float32(hidden**-0.5)
    normed = model.norm("inputs.norm", projected.reshape(*x.shape[:-1], -1, size))
    return (normed + rows.reshape(normed.shape) * np.float32(size**0.5)) * np.float32(2**-0.5)


def end(model: Model, layer: int, x: Float32) -> None:
    """Add norm(out(activation(gate(x)) * p)) where the layer has inputs p, and scale the states where it says so."""
    name = f"layers.{layer}"
    if model.inputs is not None:
        inner = _activated(model, layer, model.linear(f"{name}.inputs.gate", x)) * model.inputs[:, :, layer]
        x += model.norm(f"{name}.inputs.post_norm", model.linear(f"{name}.inputs.out", inner))
    if model.decoder.layer(layer).scaled:
        x *= model.weights.rows(f"{name}.scale", 0, 1)


def _activated(model: Model, layer: int, x: Float32) -> Float32:
    silu = model.decoder.layer(layer).mlp.activation == "silu"
    return _silu(model.by, x) if silu else _gelu_tanh(model.by, x)


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


def scaled(x: Float32, scale: float) -> Float32:
    return x if scale == 1 else x * np.float32(scale)


def softcap(by: Arithmetic, x: Float32, cap: float | None) -> Float32:
    """cap tanh(x / cap), or x without a cap."""
    return x if cap is None else by.tanh(x / np.float32(cap)) * np.float32(cap)


def _gelu_tanh(by: Arithmetic, x: Float32) -> Float32:
    """x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))) / 2 (arXiv:1606.08415)."""
    inner = np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x * x * x)
    result: Float32 = np.float32(0.5) * x * (1 + by.tanh(inner))
    return result


def _sigmoid(by: Arithmetic, x: Float32) -> Float32:
    """1 / (1 + exp(-x))."""
    return np.float32(1) / (np.float32(1) + by.exp(-x))


def _softplus(by: Arithmetic, x: Float32) -> Float32:
    """log(1 + exp(x)), as max(x, 0) + log(1 + exp(-|x|)), which overflows nowhere."""
    result: Float32 = np.maximum(x, np.float32(0)) + by.log1p(by.exp(-np.abs(x)))
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
