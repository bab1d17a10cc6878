"""The reference: a decoder in numpy float32. This is what "the same model" means for every target and every engine.

It reads the weights in blocks of rows and holds one block at a time. Names of shapes: n positions, h hidden size,
d head dimension. Products go through BLAS, which chooses its threads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from edgepack.decoder import Decoder
from edgepack.errors import UsageError
from edgepack_packager.weights import Float32, Weights, row_blocks


def logits(weights: Weights, ids: Sequence[int], progress: Callable[[], None] | None = None) -> Float32:
    """Return the logits after each of the token ids, which take the positions from 0: float32 [n, n_vocab].

    ``progress`` and errors as in ``hidden``.
    """
    return head(weights, hidden(weights, ids, progress))


def hidden(weights: Weights, ids: Sequence[int], progress: Callable[[], None] | None = None) -> Float32:
    """Return the normed states after the last layer, from which ``head`` makes logits: float32 [n, h].

    ``progress`` is called after each layer. Memory: a block of weights, some [n, intermediate] and [n, n] arrays.
    Raises ``UsageError`` for ids outside the embedding.
    """
    decoder = weights.decoder
    if not len(ids) or min(ids) < 0 or max(ids) >= decoder.n_vocab:
        raise UsageError(f"The reference needs token ids from 0 to {decoder.n_vocab - 1}, and at least one.")
    report = progress or (lambda: None)
    model = _Model(weights)
    rotation = _rotation(decoder, len(ids))
    x = np.concatenate([weights.rows("embedding", i, i + 1) for i in ids])
    for layer in range(decoder.n_layers):
        x += _attention(model, f"layers.{layer}.attention", model.norm(f"layers.{layer}.attention.norm", x), rotation)
        x += _mlp(model, f"layers.{layer}.mlp", model.norm(f"layers.{layer}.mlp.norm", x))
        report()
    return model.norm("norm", x)


def head(weights: Weights, states: Float32) -> Float32:
    """Return the logits of states: float32 [n, n_vocab]. It reads the whole head for any number of them."""
    return _Model(weights).linear("embedding" if weights.decoder.tied else "head", states)


class _Model:
    """The two operations that have weights."""

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.decoder = weights.decoder
        self.shapes = dict(weights.decoder.tensors())

    def linear(self, name: str, x: Float32) -> Float32:
        """x W^T + b, or x W^T for a decoder without this bias."""
        rows, columns = self.shapes[name]
        result = np.empty((len(x), rows), dtype=np.float32)
        for start, stop in row_blocks((rows, columns)):
            np.matmul(x, self.weights.rows(name, start, stop).T, out=result[:, start:stop])
        if f"{name}.bias" in self.shapes:
            result += self.weights.rows(f"{name}.bias", 0, rows)
        return result

    def norm(self, name: str, x: Float32) -> Float32:
        """RMSNorm: w x / sqrt(mean(x^2) + eps)."""
        mean: Float32 = np.mean(np.square(x), axis=-1, keepdims=True)
        normed: Float32 = x / np.sqrt(mean + np.float32(self.decoder.norm_eps))
        return normed * self.weights.rows(name, 0, x.shape[-1])


def _attention(model: _Model, name: str, x: Float32, rotation: tuple[Float32, Float32]) -> Float32:
    """Causal attention with grouped heads: each key and value head serves n_heads / n_kv_heads query heads."""
    decoder, n = model.decoder, len(x)
    q = _rotate(model.linear(f"{name}.q", x).reshape(n, decoder.n_heads, decoder.head_dim), *rotation)
    k = _rotate(model.linear(f"{name}.k", x).reshape(n, decoder.n_kv_heads, decoder.head_dim), *rotation)
    v = model.linear(f"{name}.v", x).reshape(n, decoder.n_kv_heads, decoder.head_dim)
    mixed = np.empty_like(q)
    future = np.triu(np.ones((n, n), dtype=np.bool_), k=1)
    for head, kv_head in _heads(decoder):
        scores = q[:, head] @ k[:, kv_head].T * np.float32(decoder.head_dim**-0.5)
        scores[future] = -np.inf
        mixed[:, head] = _softmax(scores) @ v[:, kv_head]
    return model.linear(f"{name}.o", mixed.reshape(n, decoder.q_size))


def _heads(decoder: Decoder) -> Iterator[tuple[int, int]]:
    """Yield every query head with the key and value head that it reads."""
    for head in range(decoder.n_heads):
        yield head, head * decoder.n_kv_heads // decoder.n_heads


def _mlp(model: _Model, name: str, x: Float32) -> Float32:
    """down(silu(gate(x)) * up(x))."""
    inner = _silu(model.linear(f"{name}.gate", x))
    inner *= model.linear(f"{name}.up", x)
    return model.linear(f"{name}.down", inner)


def _rotation(decoder: Decoder, n: int) -> tuple[Float32, Float32]:
    """Return the cosine and the sine of every position's angles: [n, 1, d / 2] each."""
    positions = np.arange(n, dtype=np.float32)
    angles = (positions[:, None] * decoder.rope.frequencies())[:, None, :]
    return np.cos(angles), np.sin(angles)


def _rotate(x: Float32, cos: Float32, sin: Float32) -> Float32:
    """Rotate element i of each head with element i + d/2: x is [n, heads, d]."""
    first, second = np.split(x, 2, axis=-1)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _silu(x: Float32) -> Float32:
    """x / (1 + exp(-x)); exp overflows to infinity for a very negative x, whose limit is 0."""
    with np.errstate(over="ignore"):
        result: Float32 = x / (1 + np.exp(-x))
    return result


def _softmax(scores: Float32) -> Float32:
    """Softmax over the last axis."""
    weights: Float32 = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    return weights
