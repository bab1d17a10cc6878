"""Mixers: through what the positions of a layer see each other, and what each keeps of them.

A mixer names its type, the tensors that it has, and its room among a layer's names.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import msgspec

from edgepack.bundle.bounds import Count, HeadSize, Index, Positive, Taps, Width
from edgepack.bundle.rope import Rope

Shape = tuple[int, ...]


class Temperature(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Queries grow with their position p: they are multiplied by 1 + beta ln(1 + floor(p / length)) (Llama 4)."""

    beta: Positive
    length: Count


class Attention(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="attention"
):
    """Causal attention: each head of keys and values serves ``n_heads / n_kv_heads`` heads of queries.

    It sees positions by ``rope`` (None: not at all), and the last ``window`` of them, its own included (None: all).
    In the order of the computation: ``qk_norm`` is an RMSNorm of q and k, over each "head" before rope or, "rotated",
    after it, or over the whole "width" before; ``temperature`` multiplies q; ``scale`` (None: head_dim ** -0.5)
    multiplies the scores, and a softcap c makes c tanh(x / c) of them. With ``gated`` the result is multiplied by the
    sigmoid of a projection of the input, before the output's: each element by one of its own, or all of a head by one.
    It keeps keys and values of each token.
    With ``v_norm`` each head of v is divided by its root mean square, as by an RMSNorm without a gain.
    A ``bidirectional`` one sees what comes after as well, a window to both sides, its own position counted to each; it
    keeps nothing, as a text is evaluated at once. One with a ``kv_layer`` has queries alone: it reads the keys and
    values that this earlier layer keeps.
    """

    room: ClassVar[str] = "attention"
    n_heads: Width
    n_kv_heads: Width
    head_dim: HeadSize
    rope: Rope | None
    window: Count | None = None
    scale: Positive | None = None
    softcap: Positive | None = None
    qk_norm: Literal["head", "rotated", "width"] | None = None
    temperature: Temperature | None = None
    qkv_bias: bool = False
    output_bias: bool = False
    gated: bool | Literal["heads"] = False
    v_norm: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    bidirectional: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    kv_layer: Index | msgspec.UnsetType = msgspec.UNSET

    @property
    def owns(self) -> bool:
        """Whether it makes keys and values of its own."""
        return self.kv_layer is msgspec.UNSET

    @property
    def q_size(self) -> int:
        """Rows of the query projection: heads times head dimension, which need not equal the hidden size."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection: elements that a token adds to each cache."""
        return self.n_kv_heads * self.head_dim

    @property
    def shares(self) -> bool:
        """Whether several heads of queries share one of keys and values."""
        return self.n_kv_heads < self.n_heads

    @property
    def score_scale(self) -> float:
        """What multiplies the scores."""
        return self.head_dim**-0.5 if self.scale is None else self.scale

    @property
    def gate_size(self) -> int:
        """Rows of the projection that opens the result, 0 where there is none."""
        return self.n_heads if self.gated == "heads" else self.q_size * self.gated

    def worked(self, hidden: int) -> int:
        """Return the numbers of a token that a step works in: q, k, v, the gate and the result."""
        return 2 * self.q_size + self.gate_size + 2 * self.kv_size * self.owns

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        """Yield (name, shape) of its tensors, without its norms over the hidden size."""
        yield from linear("q", self.q_size, hidden, self.qkv_bias)
        if self.owns:
            yield from linear("k", self.kv_size, hidden, self.qkv_bias)
            yield from linear("v", self.kv_size, hidden, self.qkv_bias)
        if self.qk_norm:
            whole = self.qk_norm == "width"
            yield "q_norm", (self.q_size if whole else self.head_dim,)
            if self.owns:
                yield "k_norm", (self.kv_size if whole else self.head_dim,)
        if self.gated:
            yield "gate", (self.gate_size, hidden)
        yield from linear("o", hidden, self.q_size, self.output_bias)


class Convolution(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="convolution"
):
    """A gated short convolution (LFM2, arXiv:2511.23404): out(c * conv(b * x)).

    ``in`` makes b, c and x of the input, one after the other. conv is causal and of each channel alone: what position p
    gets is the sum over i of ``kernel[i]`` times what p - ``length`` + 1 + i gives, and zeros before the first; with
    ``bias`` a number for each channel is added, as to ``in`` and ``out``. It keeps the last ``length`` - 1 of b * x.
    """

    room: ClassVar[str] = "convolution"
    length: Taps
    bias: bool = False

    def states(self, hidden: int) -> dict[str, Shape]:
        """Return the shapes of what it keeps, whatever the number of tokens: positions and channels."""
        return {"conv": (self.length - 1, hidden)}

    def worked(self, hidden: int) -> int:
        """Return the numbers of a token that a step works in: b, c, x, what is convolved, and the result."""
        return 5 * hidden

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        """Yield (name, shape) of its tensors. ``kernel`` has the ``length`` numbers of a channel, then the next's."""
        yield from linear("in", 3 * hidden, hidden, self.bias)
        yield "kernel", (hidden * self.length,)
        if self.bias:
            yield "kernel.bias", (hidden,)
        yield from linear("out", hidden, hidden, self.bias)


class Delta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, tag_field="type", tag="delta"):
    """The gated delta rule (arXiv:2412.06464): a matrix S for each head of values, that forgets and is corrected.

    ``qkv`` makes q, k and v of the input, one after the other, on which a causal convolution of each channel and silu
    act; q and k of a head are divided by their length, q by the root of ``key_dim`` too. Each head of keys serves
    ``n_value_heads / n_key_heads`` neighbouring ones of values. With the input's projections a and b, one number for
    each head of values, S becomes d S + k (sigmoid(b) (v - d S^T k))^T, where d = exp(-exp(``decay``) softplus(a +
    ``step``)), and gives S^T q. out(norm(that) * silu(z)) follows, with an RMSNorm of each head.
    It keeps S, float32 [n_value_heads, value_dim, key_dim], and the last ``length`` - 1 of what is convolved.
    """

    room: ClassVar[str] = "delta"
    n_key_heads: Width
    n_value_heads: Width
    key_dim: HeadSize
    value_dim: HeadSize
    length: Taps

    @property
    def key_size(self) -> int:
        """Rows that make q, and of those that make k."""
        return self.n_key_heads * self.key_dim

    @property
    def value_size(self) -> int:
        """Rows that make v."""
        return self.n_value_heads * self.value_dim

    @property
    def channels(self) -> int:
        """Rows that make q, k and v."""
        return 2 * self.key_size + self.value_size

    def states(self, hidden: int) -> dict[str, Shape]:
        """Return the shapes of what it keeps, whatever the number of tokens."""
        matrix = (self.n_value_heads, self.value_dim, self.key_dim)
        return {"conv": (self.length - 1, self.channels), "delta": matrix}

    def worked(self, hidden: int) -> int:
        """Return the numbers of a token that a step works in: q, k and v before and after the convolution, z, and the
        result."""
        return 2 * self.channels + 2 * self.value_size

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        """Yield (name, shape) of its tensors. ``kernel`` has the ``length`` numbers of a channel, then the next's."""
        yield "qkv", (self.channels, hidden)
        yield "z", (self.value_size, hidden)
        yield "a", (self.n_value_heads, hidden)
        yield "b", (self.n_value_heads, hidden)
        yield "kernel", (self.channels * self.length,)
        yield "step", (self.n_value_heads,)
        yield "decay", (self.n_value_heads,)
        yield "head_norm", (self.value_dim,)
        yield "out", (hidden, self.value_size)


Mixer = Attention | Convolution | Delta
"""Through what the positions of a layer see each other."""


def linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, Shape]]:
    """Yield (name, shape) of a matrix [rows, columns], and of its bias."""
    yield name, (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
