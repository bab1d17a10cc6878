"""A decoder in MLX: all that ``edgepack.bundle.decoder`` can describe, under the names that mlx-lm gives the tensors.

What is computed is defined in ``edgepack_packager.reference``. Arrays are [1, n, hidden size], per head
[1, heads, n, head dimension], in one type, that of the weights which are not packed; softmax, norms, angles and
softcaps are computed in float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Delta, Layer, Mlp, Temperature
from edgepack.bundle.rope import Rope
from edgepack_runtimes.mlx.cache import Cache, LayerCache, Mask, Part, causal_mask, join, near_mask, split
from edgepack_runtimes.mlx.fusing import in_one_kernel
from edgepack_runtimes.mlx.stateful import DeltaRule, ShortConvolution

Text = tuple[Sequence[int], Sequence[Cache]]
"""Ids to append, and what each layer keeps of those before them."""


class Transformer(nn.Module):
    """The whole model. ``fused``: q, k and v are one matrix, and so are gate and up, as Phi's checkpoints have them."""

    def __init__(self, decoder: Decoder, fused: bool) -> None:
        super().__init__()
        self._softcap, self._scale = decoder.logits_softcap, decoder.logits_scale
        self._tied = decoder.tied
        self.model = Layers(decoder, fused)
        if not decoder.tied:
            self.lm_head = nn.Linear(decoder.hidden_size, decoder.n_vocab, bias=False)

    def hidden(self, texts: Sequence[Text]) -> mx.array:
        """Append ids to each text's caches; return their normed states after the last layer, one text's after the
        other's: [1, tokens of all, hidden size]."""
        return self.model(texts)

    def logits(self, states: mx.array) -> mx.array:
        """Return the logits of states: float32 [1, n, n_vocab]."""
        head = self.model.embed_tokens.as_linear if self._tied else self.lm_head
        logits = head(states).astype(mx.float32)
        if self._scale != 1:
            logits = logits * self._scale
        return logits if self._softcap is None else mx.tanh(logits / self._softcap) * self._softcap


class Layers(nn.Module):
    """The embedding, the layers and the last norm."""

    def __init__(self, decoder: Decoder, fused: bool) -> None:
        super().__init__()
        self._scale = decoder.embedding_scale
        self._windows = [layer.mixer.window if isinstance(layer.mixer, Attention) else None for layer in decoder.layers]
        self._both = decoder.at_once
        self._as_array = any(attention.softcap is not None for attention in decoder.attentions)
        turned = {(each.rope, each.head_dim) for each in decoder.attentions}
        rotations = {(rope, size): Rotation(rope, size) if rope else None for rope, size in turned}
        self.embed_tokens = nn.Embedding(decoder.n_vocab, decoder.hidden_size)
        self.layers = [Block(decoder, layer, fused, rotations) for layer in decoder.layers]
        self.norm = hidden_norm(decoder)
        self._parts = (decoder.n_layers, decoder.inputs)
        if decoder.inputs:
            width = decoder.n_layers * decoder.inputs
            self.embed_tokens_per_layer = nn.Embedding(decoder.n_vocab, width)
            self.per_layer_model_projection = nn.Linear(decoder.hidden_size, width, bias=False)
            self.per_layer_projection_norm = nn.RMSNorm(decoder.inputs, decoder.norm_eps)

    def __call__(self, texts: Sequence[Text]) -> mx.array:
        ids = mx.array([[token for tokens, _ in texts for token in tokens]])
        x = self.embed_tokens(ids)
        if self._scale != 1:
            # A Python number would be rounded to the type of x first.
            x = (x * mx.array(self._scale, mx.float32)).astype(x.dtype)
        spans, end = list[slice](), 0
        for tokens, _ in texts:
            spans.append(slice(end, end := end + len(tokens)))
        masks = {
            window: [self._mask(len(tokens), caches[0].offset, window) for tokens, caches in texts]
            for window in set(self._windows)
        }
        inputs = self._inputs(ids, x) if self._parts[1] else [None] * len(self.layers)
        for index, (layer, window, own) in enumerate(zip(self.layers, self._windows, inputs, strict=True)):
            kept = [caches[index] for _, caches in texts]
            x = layer(x, [*map(Part, spans, masks[window], kept)], own)
        for cache in (cache for _, caches in texts for cache in caches):
            if isinstance(cache, LayerCache):
                cache.claim()
        return cast(mx.array, self.norm(x))

    def _inputs(self, ids: mx.array, x: mx.array) -> Sequence[mx.array]:
        """Return what each layer gets of the tokens: [1, n, size]."""
        scales = x.shape[-1] ** -0.5, self._parts[1] ** 0.5, 2**-0.5
        of_hidden, of_size, of_both = (mx.array(scale, mx.float32) for scale in scales)
        projected = (self.per_layer_model_projection(x) * of_hidden).astype(x.dtype)
        normed = self.per_layer_projection_norm(projected.reshape(*x.shape[:-1], *self._parts))
        rows = self.embed_tokens_per_layer(ids).reshape(normed.shape)
        joined = ((normed + rows * of_size) * of_both).astype(x.dtype)
        return [joined[:, :, layer] for layer in range(self._parts[0])]

    def _mask(self, rows: int, offset: int, window: int | None) -> Mask:
        """Return the mask of a step, by its name where it has one: the fused attention then skips what it hides."""
        if self._both:
            return None if window is None or rows <= window else near_mask(rows, window)
        if self._as_array or (window is not None and offset + rows > window):
            return causal_mask(rows, offset, window)
        return "causal" if rows > 1 else None


class Block(nn.Module):
    """Mixer and MLP with their norms, named as Gemma's where some stand behind a block, else as Llama's; and what a
    layer makes of the inputs that it gets of a token itself."""

    def __init__(
        self,
        decoder: Decoder,
        layer: Layer,
        fused: bool,
        rotations: Mapping[tuple[Rope | None, int], Rotation | None],
    ) -> None:
        super().__init__()
        hidden, epsilon = decoder.hidden_size, decoder.norm_eps
        norm = partial(hidden_norm, decoder)
        self._pre_norms, self._post_norms = layer.pre_norms, layer.post_norms
        self._scale = layer.residual_scale
        if isinstance(layer.mixer, Convolution):
            self.conv = ShortConvolution(layer.mixer, hidden)
        elif isinstance(layer.mixer, Delta):
            self.linear_attn = DeltaRule(layer.mixer, hidden, epsilon)
        else:
            rotation = rotations[layer.mixer.rope, layer.mixer.head_dim]
            self.self_attn = SelfAttention(layer.mixer, hidden, epsilon, fused, rotation)
        self.mlp = GatedMlp(layer.mlp, hidden, fused)
        self.post_attention_layernorm = norm()
        if layer.pre_norms:
            self.input_layernorm = norm()
        if layer.post_norms:
            self.post_feedforward_layernorm = norm()
        if layer.pre_norms and layer.post_norms:
            self.pre_feedforward_layernorm = norm()
        self._gated: Callable[[mx.array, mx.array], mx.array] = _GATED[layer.mlp.activation]
        if layer.inputs:
            self.per_layer_input_gate = nn.Linear(hidden, layer.inputs, bias=False)
            self.per_layer_projection = nn.Linear(layer.inputs, hidden, bias=False)
            self.post_per_layer_input_norm = norm()
        if layer.scaled:
            self.layer_scalar = mx.ones((1,))

    def __call__(self, x: mx.array, parts: Sequence[Part], inputs: mx.array | None) -> mx.array:
        x = self._mixed(x, parts)
        if inputs is not None:
            inner = self._gated(self.per_layer_input_gate(x), inputs)
            x = x + self.post_per_layer_input_norm(self.per_layer_projection(inner))
        return x * self.layer_scalar if "layer_scalar" in self else x

    def _mixed(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        entered = self.input_layernorm(x) if self._pre_norms else x
        mixer = next(self[name] for name in ("self_attn", "conv", "linear_attn") if name in self)
        mixed = mixer(entered, parts)
        if not self._post_norms:
            x = x + self._scaled(mixed)
            return x + self._scaled(self.mlp(self.post_attention_layernorm(x)))
        x = x + self._scaled(self.post_attention_layernorm(mixed))
        added = self.mlp(self.pre_feedforward_layernorm(x) if self._pre_norms else x)
        return x + self._scaled(self.post_feedforward_layernorm(added))

    def _scaled(self, x: mx.array) -> mx.array:
        return x if self._scale == 1 else x * self._scale


def hidden_norm(decoder: Decoder) -> nn.Module:
    """Return a norm over the hidden size."""
    return (nn.LayerNorm if decoder.norm else nn.RMSNorm)(decoder.hidden_size, decoder.norm_eps)


class SelfAttention(nn.Module):
    """Attention with grouped heads: causal over the layer's cache, or over the step alone, to both sides.

    A layer without keys of its own gets the cache of another, in which that one's step lies already.
    """

    def __init__(
        self, attention: Attention, hidden: int, epsilon: float, fused: bool, rotation: Rotation | None
    ) -> None:
        super().__init__()
        self._head_dim = attention.head_dim
        self._fused, self._qk_norm, self._rotation = fused, attention.qk_norm, rotation
        self._temperature, self._both = attention.temperature, bool(attention.bidirectional)
        self._scale, self._softcap = attention.score_scale, attention.softcap
        self._owns, self._v_norm = attention.owns, epsilon if attention.v_norm else None
        q_size, kv_size, bias = attention.q_size, attention.kv_size, attention.qkv_bias
        if fused:
            self.qkv_proj = nn.Linear(hidden, q_size + 2 * kv_size, bias)
            self._ends = [q_size, q_size + kv_size]
        else:
            self.q_proj = nn.Linear(hidden, q_size, bias)
            if attention.owns:
                self.k_proj = nn.Linear(hidden, kv_size, bias)
                self.v_proj = nn.Linear(hidden, kv_size, bias)
        self.o_proj = nn.Linear(q_size, hidden, attention.output_bias)
        self._gated = attention.gated
        if attention.gated:
            self.gate_proj = nn.Linear(hidden, attention.gate_size, bias=False)
        if attention.qk_norm:
            whole = attention.qk_norm == "width"
            self.q_norm = nn.RMSNorm(q_size if whole else attention.head_dim, epsilon)
            if attention.owns:
                self.k_norm = nn.RMSNorm(kv_size if whole else attention.head_dim, epsilon)

    def __call__(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        projected = zip(*(split(each, parts) for each in self._project(x)), strict=True)
        result = join([self._attended(own, part) for own, part in zip(projected, parts, strict=True)])
        if self._gated:
            result = result * mx.sigmoid(self.gate_proj(x)).reshape(*result.shape[:3], -1)
        return cast(mx.array, self.o_proj(result.reshape(1, x.shape[1], -1)))

    def _attended(self, projected: Sequence[mx.array], part: Part) -> mx.array:
        """Return what a sequence's tokens make of all that they see: [1, n, heads, head dimension]."""
        (q, *own), mask, cache = projected, part.mask, part.cache
        assert isinstance(cache, LayerCache)
        n = q.shape[1]
        start = cache.offset if own else cache.offset - n  # whoever owns the cache has moved it
        q = self._headed(q, "q_norm")
        if self._rotation:
            q = self._rotation.queries(q, start)
        q = self._normed(q, "q_norm", "rotated")
        if self._temperature:
            q = (q * growth(self._temperature, start, n)).astype(q.dtype)
        k, v = self._kept(own, cache) if own else cache.lent
        if self._softcap is None:
            mixed = mx.fast.scaled_dot_product_attention(q, k, v, scale=self._scale, mask=mask)
        else:
            mixed = capped_attention(q, k, v, self._scale, self._softcap, mask)
        return mixed.transpose(0, 2, 1, 3)

    def _kept(self, own: Sequence[mx.array], cache: LayerCache) -> tuple[mx.array, mx.array]:
        """Return all keys and values that the step sees, its own among them."""
        k, v = self._headed(own[0], "k_norm"), self._headed(own[1])
        if self._rotation:
            k = self._rotation.keys(k, cache.offset)
        k = self._normed(k, "k_norm", "rotated")
        if self._v_norm is not None:
            v = mx.fast.rms_norm(v, None, self._v_norm)
        return (k, v) if self._both else cache.append(k, v)

    def _headed(self, x: mx.array, norm: str = "") -> mx.array:
        """Return the heads of a projection, [1, heads, n, head dimension], with their norm, if it stands here."""
        x = self._normed(x, norm, "width") if norm else x
        x = x.reshape(1, x.shape[1], -1, self._head_dim)
        return (self._normed(x, norm, "head") if norm else x).transpose(0, 2, 1, 3)

    def _normed(self, x: mx.array, norm: str, place: str) -> mx.array:
        return self[norm](x) if self._qk_norm == place else x

    def _project(self, x: mx.array) -> Sequence[mx.array]:
        """Return q, and k and v where they are the layer's own."""
        if self._fused:
            return tuple(mx.split(self.qkv_proj(x), self._ends, axis=-1))
        return (self.q_proj(x), self.k_proj(x), self.v_proj(x)) if self._owns else (self.q_proj(x),)


class Rotation:
    """A rope: it rotates element i of a head with element i + dim/2, and leaves those from dim on.

    mlx gets the frequencies rather than theta: its own powers are off by 1e-6, which costs an NMSE of 5e-10 at position
    4096. The magnitude multiplies q and k alike, so q takes its square, in float32, and the cache is spared.
    """

    def __init__(self, rope: Rope, head_dim: int) -> None:
        self._dim = rope.dim
        with np.errstate(divide="ignore"):  # a pair that does not turn
            self._wavelengths = mx.array(1 / rope.frequencies())
        self._gain: mx.array | None = None
        if rope.magnitude != 1:
            rotated = mx.arange(head_dim) < rope.dim
            self._gain = mx.where(rotated, mx.array(rope.magnitude**2, mx.float32), mx.array(1, mx.float32))

    def queries(self, q: mx.array, offset: int) -> mx.array:
        """Rotate the queries of positions from ``offset`` on."""
        return self.keys(q if self._gain is None else q * self._gain, offset).astype(q.dtype)

    def keys(self, k: mx.array, offset: int) -> mx.array:
        """Rotate the keys of positions from ``offset`` on."""
        return mx.fast.rope(
            k, self._dim, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._wavelengths
        )


def growth(temperature: Temperature, start: int, count: int) -> mx.array:
    """Return what the queries of positions from ``start`` on are multiplied by: float32 [count, 1]."""
    times = [position // temperature.length for position in range(start, start + count)]
    return mx.array([[1 + temperature.beta * math.log(1 + each)] for each in times], mx.float32)


def capped_attention(q: mx.array, k: mx.array, v: mx.array, scale: float, cap: float, mask: Mask) -> mx.array:
    """Attention whose scores x become cap tanh(x / cap), for which mlx has no fused kernel."""
    heads, kv_heads = q.shape[1], k.shape[1]
    grouped = q.reshape(1, kv_heads, heads // kv_heads, *q.shape[2:])
    scores = _cap(grouped @ k[:, :, None].swapaxes(-1, -2), scale / cap, cap)
    if isinstance(mask, mx.array):
        scores = mx.where(mask, scores, -mx.inf)
    mixed = mx.softmax(scores, axis=-1).astype(v.dtype) @ v[:, :, None]
    return mixed.reshape(q.shape)


@in_one_kernel
def _cap(x: mx.array, scale: float, cap: float) -> mx.array:
    return mx.tanh(x.astype(mx.float32) * scale) * cap


class GatedMlp(nn.Module):
    """down(activation(gate(x)) * up(x))."""

    def __init__(self, mlp: Mlp, hidden: int, fused: bool) -> None:
        super().__init__()
        self._fused = fused
        self._gated: Callable[[mx.array, mx.array], mx.array] = _GATED[mlp.activation]
        inner, bias = mlp.size, mlp.bias
        if fused:
            self.gate_up_proj = nn.Linear(hidden, 2 * inner, bias)
        else:
            self.gate_proj = nn.Linear(hidden, inner, bias)
            self.up_proj = nn.Linear(hidden, inner, bias)
        self.down_proj = nn.Linear(inner, hidden, bias)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1) if self._fused else (self.gate_proj(x), self.up_proj(x))
        return cast(mx.array, self.down_proj(self._gated(gate, up)))


@in_one_kernel
def _swiglu(gate: mx.array, up: mx.array) -> mx.array:
    return gate * mx.sigmoid(gate) * up


@in_one_kernel
def _geglu(gate: mx.array, up: mx.array) -> mx.array:
    inner = math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)
    return 0.5 * gate * (1 + mx.tanh(inner)) * up


_GATED = {"silu": _swiglu, "gelu_tanh": _geglu}
