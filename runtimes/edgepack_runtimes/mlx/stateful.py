"""Mixers that keep a state, whatever the number of tokens: the short convolution and the gated delta rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from edgepack.bundle.decoder import Convolution, Delta
from edgepack_runtimes.mlx.cache import Part, StateCache, join, split
from edgepack_runtimes.mlx.fusing import in_one_kernel


class ShortConvolution(nn.Module):
    """out(c * conv(b * x)), where ``in_proj`` makes b, c and x, and the layer's cache has the positions before."""

    def __init__(self, convolution: Convolution, hidden: int) -> None:
        super().__init__()
        self.in_proj = nn.Linear(hidden, 3 * hidden, convolution.bias)
        self.conv = Kernel(hidden, convolution.length, convolution.bias)
        self.out_proj = nn.Linear(hidden, hidden, convolution.bias)

    def __call__(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        opening, closing, values = mx.split(self.in_proj(x), 3, axis=-1)
        return cast(mx.array, self.out_proj(closing * convolved(self.conv, opening * values, parts)))


class Kernel(nn.Module):
    """A kernel for each channel, [channels, length, 1], and a number for each where it has a bias."""

    def __init__(self, channels: int, length: int, bias: bool) -> None:
        super().__init__()
        self.weight = mx.zeros((channels, length, 1))
        if bias:
            self.bias = mx.zeros((channels,))

    def __call__(self, rows: mx.array) -> mx.array:
        """Return [1, n, channels] of [1, length - 1 + n, channels]."""
        length = self.weight.shape[1]
        count = rows.shape[1] - length + 1
        taps = [rows[:, tap : tap + count] * self.weight[:, tap, 0] for tap in range(length)]
        mixed = sum(taps[1:], taps[0])
        return mixed + self.bias if "bias" in self else mixed


def convolved(kernel: Kernel, rows: mx.array, parts: Sequence[Part]) -> mx.array:
    """Return the rows of each sequence, [1, n, channels], convolved with those before them, which its cache has."""
    found = []
    for own, part in zip(split(rows, parts), parts, strict=True):
        assert isinstance(part.cache, StateCache)
        found.append(kernel(part.cache.append(own)))
    return join(found)


class DeltaRule(nn.Module):
    """out(norm(S^T q) * silu(z)), where the layer's cache has S and the rows before. S is float32."""

    def __init__(self, delta: Delta, hidden: int, epsilon: float) -> None:
        super().__init__()
        self._keys, self._values = (delta.n_key_heads, delta.key_dim), (delta.n_value_heads, delta.value_dim)
        self._ends = [delta.key_size, 2 * delta.key_size]
        self.in_proj_qkv = nn.Linear(hidden, delta.channels, bias=False)
        self.in_proj_z = nn.Linear(hidden, delta.value_size, bias=False)
        self.in_proj_a = nn.Linear(hidden, delta.n_value_heads, bias=False)
        self.in_proj_b = nn.Linear(hidden, delta.n_value_heads, bias=False)
        self.conv1d = Kernel(delta.channels, delta.length, bias=False)
        self.dt_bias, self.A_log = mx.zeros((delta.n_value_heads,)), mx.zeros((delta.n_value_heads,))
        self.norm = nn.RMSNorm(delta.value_dim, epsilon)
        self.out_proj = nn.Linear(delta.value_size, hidden, bias=False)

    def __call__(self, x: mx.array, parts: Sequence[Part]) -> mx.array:
        n = x.shape[1]
        mixed = convolved(self.conv1d, self.in_proj_qkv(x), parts)
        q, k, v = mx.split((mixed * mx.sigmoid(mixed)).astype(mx.float32), self._ends, axis=-1)
        q, k = (_unit(part.reshape(1, n, *self._keys)) for part in (q, k))
        shared = self._values[0] // self._keys[0]
        q, k = mx.repeat(q * self._keys[1] ** -0.5, shared, axis=2), mx.repeat(k, shared, axis=2)
        v = v.reshape(1, n, *self._values)
        a, b = self.in_proj_a(x).astype(mx.float32), self.in_proj_b(x).astype(mx.float32)
        decay = mx.exp(-mx.exp(self.A_log.astype(mx.float32)) * mx.logaddexp(a + self.dt_bias, mx.array(0.0)))
        given = q, k, v, decay, mx.sigmoid(b)
        found = []
        for *own, part in zip(*(split(each, parts) for each in given), parts, strict=True):
            assert isinstance(part.cache, StateCache)
            state = part.cache.of("delta", mx.float32)
            for i in range(own[0].shape[1]):
                state, row = _corrected(state, *(each[:, i] for each in own))
                found.append(row)
            part.cache.keep("delta", state)
        z = self.in_proj_z(x).reshape(1, n, *self._values)
        normed = self.norm(mx.stack(found, axis=1).astype(x.dtype))
        return cast(mx.array, self.out_proj((normed * z * mx.sigmoid(z)).reshape(1, n, -1)))


def _unit(x: mx.array) -> mx.array:
    return x * mx.rsqrt(x.square().sum(axis=-1, keepdims=True) + 1e-6)


@in_one_kernel
def _corrected(
    state: mx.array, q: mx.array, k: mx.array, v: mx.array, decay: mx.array, rate: mx.array
) -> tuple[mx.array, mx.array]:
    """Return S after a position, [1, heads, value dimension, key dimension], and S^T q: [1, heads, value dimension]."""
    state = state * decay[..., None, None]
    known = (state * k[..., None, :]).sum(axis=-1)
    state = state + ((v - known) * rate[..., None])[..., None] * k[..., None, :]
    return state, (state * q[..., None, :]).sum(axis=-1)
