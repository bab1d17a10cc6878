"""The decoder: one description of a model, read by the reference, by every target and by every runtime.

It knows hyper-parameters and the names and shapes of the canonical tensors. It does not know Hugging Face
names, file formats or engines: a family turns a checkpoint into this description, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray

KvCache = Literal["f32", "f16", "q8"]
"""The element type of a KV cache; "q8": 8 bits and a scale for some of them, as the engine has it."""

# Bounds of what a file says: far above any model's, below what would fill a memory or overflow an engine's integers.
MAX_LAYERS = 512
Count = Annotated[int, msgspec.Meta(gt=0, lt=1 << 31)]
Width = Annotated[int, msgspec.Meta(gt=0, le=1 << 24)]
Layers = Annotated[int, msgspec.Meta(gt=0, le=MAX_LAYERS)]
HeadSize = Annotated[int, msgspec.Meta(gt=0, le=1 << 14)]
Positive = Annotated[float, msgspec.Meta(gt=0)]
PortName = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]


class LinearScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="linear"):
    """All rope frequencies divided by one factor."""

    factor: Positive


class Llama3Scaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="llama3"):
    """Low rope frequencies divided by a factor, high ones kept, those between interpolated (Llama 3.1 and later)."""

    factor: Positive
    low_freq_factor: Positive
    high_freq_factor: Positive
    original_context: Count


class LongRopeScaling(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="type", tag="longrope"):
    """Every rope frequency divided by a factor of its own; cosine and sine multiplied by ``magnitude`` (Phi).

    The source has two lists of factors, for sequences of up to ``original_context`` tokens and for longer ones. A
    decoder has the one that belongs to its context, so that no engine has to choose while it runs.
    """

    factors: Annotated[tuple[Positive, ...], msgspec.Meta(max_length=1 << 13)]
    magnitude: Positive
    original_context: Count


Scaling = LinearScaling | Llama3Scaling | LongRopeScaling


class Rope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rotary position embedding in the half-split layout: element i of a head rotates with element i + dim/2.

    Where ``dim`` is less than the head dimension, the elements from ``dim`` on pass through.
    """

    theta: Positive
    dim: HeadSize
    scaling: Scaling | None = None

    @property
    def magnitude(self) -> float:
        """What cosine and sine are multiplied by."""
        return self.scaling.magnitude if isinstance(self.scaling, LongRopeScaling) else 1.0

    def frequencies(self) -> NDArray[np.float32]:
        """Return the angle in radians that one position adds, per rotated pair: float32 [dim / 2].

        Unscaled: theta ** (-2 i / dim). Linear: divided by the factor; longrope: each by its own. The llama3 rule:
        with wavelength w = 2 pi / f, original context c, w < c/high stays, w > c/low becomes f/factor, and between
        the two s = (c/w - low) / (high - low) gives (1 - s) f/factor + s f.
        """
        exponent = np.arange(0, self.dim, 2, dtype=np.float32) / np.float32(self.dim)
        # Powers in float64, rounded once: the float32 power of a host's library may be off in the last place.
        powers = (np.float64(self.theta) ** exponent.astype(np.float64)).astype(np.float32)
        frequencies = np.float32(1.0) / powers
        match self.scaling:
            case None:
                return frequencies
            case LinearScaling(factor):
                return frequencies / np.float32(factor)
            case LongRopeScaling(factors):
                return np.float32(1.0) / (np.array(factors, np.float32) * powers)
            case Llama3Scaling(factor, low, high, context):
                wavelength = np.float32(2 * np.pi) / frequencies
                smooth = (np.float32(context) / wavelength - np.float32(low)) / np.float32(high - low)
                between = (1 - smooth) * (frequencies / np.float32(factor)) + smooth * frequencies
                scaled = np.where(wavelength > context / low, frequencies / np.float32(factor), between)
                return np.where(wavelength < context / high, frequencies, scaled).astype(np.float32)


class Attention(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a layer sees positions: ``rope`` (None: not at all), and the last ``window`` of them, its own included
    (None: all)."""

    rope: Rope | None
    window: Count | None = None


class Cell(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a graph reads a layer's keys or values and where it writes them, by name: float32 [1, KV heads, tokens,
    head dimension]. ``present`` has those of ``past`` first and then those of the step."""

    past: PortName
    present: PortName


class Graph(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The inputs and outputs of a graph with a KV cache, by name; a step of n tokens follows m in the cache.

    ``ids``: int64 [1, n]. ``mask``: int64 [1, m + n], ones. ``positions``: int64 [1, n], m and following; None where
    the graph has no such input. ``logits``: float32 [1, n, n_vocab]. ``cells``: keys and then values of each layer.
    """

    ids: PortName
    mask: PortName
    positions: PortName | None
    logits: PortName
    cells: Annotated[tuple[Cell, ...], msgspec.Meta(min_length=2, max_length=2 * MAX_LAYERS)]


class Exported(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What another program made of a model: edgepack knows what goes in and what comes out, and not the computation.

    ``exporter``: that program and its version. ``n_parameters``: elements of the source's tensors. ``graph`` is None
    for a payload that is run by the exporter's own model code.
    """

    exporter: str
    n_parameters: Annotated[int, msgspec.Meta(gt=0, le=1 << 50)]
    graph: Graph | None = None


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decoder-only transformer: attention and gated MLP blocks with RMSNorm, as ``edgepack_packager.reference`` runs.

    Sizes are counts of elements. ``n_vocab`` is the number of rows of the embedding, which may exceed the tokenizer's
    entries. ``context`` is the number of positions that the description holds for, ``trained_context`` what the model
    was trained for. ``pattern`` is repeated until every layer has its attention.

    In the order of the computation: ``embedding_scale`` multiplies the embeddings; ``qk_norm`` is an RMSNorm over each
    head of q and k, before rope; ``attention_scale`` (None: head_dim ** -0.5) multiplies the scores, and a softcap c
    makes c tanh(x / c) of them, or of the logits; ``post_norms`` are RMSNorms of a block's output before it is added.
    ``wide``: activations exceed the range of f16, so that an engine that computes in 16 bits must take bf16.

    With ``exported`` the computation is that of a graph which edgepack did not write. Only the sizes, up to
    ``trained_context``, and ``tied`` then say anything of the model: it has no canonical tensors, each layer keeps all
    positions, and the fields that describe a computation describe none.
    """

    family: str
    architecture: str
    n_layers: Layers
    hidden_size: Width
    n_heads: Width
    n_kv_heads: Width
    head_dim: HeadSize
    intermediate_size: Width
    n_vocab: Width
    context: Count
    trained_context: Count
    norm_eps: Positive
    pattern: Annotated[tuple[Attention, ...], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]
    tied: bool
    activation: Literal["silu", "gelu_tanh"] = "silu"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    embedding_scale: Positive = 1.0
    attention_scale: Positive | None = None
    attention_softcap: Positive | None = None
    logits_softcap: Positive | None = None
    wide: bool = False
    exported: Exported | msgspec.UnsetType = msgspec.UNSET

    def attention(self, layer: int) -> Attention:
        """Return how a layer sees positions."""
        return self.pattern[layer % len(self.pattern)]

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct ropes, in the order of the pattern."""
        return tuple(dict.fromkeys(attention.rope for attention in self.pattern if attention.rope))

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows that are shorter than the context, ascending."""
        sizes = {attention.window for attention in self.pattern if attention.window}
        return tuple(sorted(size for size in sizes if size < self.context))

    @property
    def score_scale(self) -> float:
        """What multiplies the attention scores."""
        return self.head_dim**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def q_size(self) -> int:
        """Rows of the query projection: heads times head dimension, which need not equal the hidden size."""
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Rows of the key projection, and of the value projection."""
        return self.n_kv_heads * self.head_dim

    @property
    def kv_values_per_token(self) -> int:
        """Elements that one token adds to the KV cache over all layers."""
        return 2 * self.n_layers * self.kv_size

    @property
    def n_parameters(self) -> int:
        """Elements of all canonical tensors."""
        if self.exported:
            return self.exported.n_parameters
        around = sum(math.prod(shape) for _, shape in self._around())
        return around + self.n_layers * sum(math.prod(shape) for _, shape in self.layer_tensors())

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (canonical name, shape) of every tensor in model order; a matrix is [output rows, input columns]."""
        if self.exported:
            return
        embedding, *end = self._around()
        yield embedding
        for layer in range(self.n_layers):
            for name, shape in self.layer_tensors():
                yield f"layers.{layer}.{name}", shape
        yield from end

    def layer_tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Yield (name within the layer, shape) of one layer's tensors, which are those of every layer."""
        hidden, inter = self.hidden_size, self.intermediate_size
        yield "attention.norm", (hidden,)
        yield from _linear("attention.q", self.q_size, hidden, self.qkv_bias)
        yield from _linear("attention.k", self.kv_size, hidden, self.qkv_bias)
        yield from _linear("attention.v", self.kv_size, hidden, self.qkv_bias)
        if self.qk_norm:
            yield "attention.q_norm", (self.head_dim,)
            yield "attention.k_norm", (self.head_dim,)
        yield from _linear("attention.o", hidden, self.q_size, self.output_bias)
        if self.post_norms:
            yield "attention.post_norm", (hidden,)
        yield "mlp.norm", (hidden,)
        yield from _linear("mlp.gate", inter, hidden, self.mlp_bias)
        yield from _linear("mlp.up", inter, hidden, self.mlp_bias)
        yield from _linear("mlp.down", hidden, inter, self.mlp_bias)
        if self.post_norms:
            yield "mlp.post_norm", (hidden,)

    def _around(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        yield "embedding", (self.n_vocab, self.hidden_size)
        yield "norm", (self.hidden_size,)
        if not self.tied:
            yield "head", (self.n_vocab, self.hidden_size)


def check(decoder: Decoder) -> None:
    """Raise ``ValueError`` for numbers that contradict each other; each alone is within its bounds."""
    if decoder.n_heads % decoder.n_kv_heads:
        raise ValueError(f"{decoder.n_heads} heads do not share {decoder.n_kv_heads} KV heads - at `$.decoder`")
    for rope in decoder.ropes:
        if rope.dim % 2 or rope.dim > decoder.head_dim:
            raise ValueError(f"a rope of {rope.dim} does not fit heads of {decoder.head_dim} - at `$.decoder.pattern`")
        if isinstance(rope.scaling, LongRopeScaling) and len(rope.scaling.factors) != rope.dim // 2:
            count = len(rope.scaling.factors)
            raise ValueError(f"a rope of {rope.dim} has {count} factors - at `$.decoder.pattern`")
    if decoder.exported and decoder.exported.graph:
        _check_graph(decoder.exported.graph, 2 * decoder.n_layers)


def _check_graph(graph: Graph, cells: int) -> None:
    place = "at `$.decoder.exported.graph`"
    if len(graph.cells) != cells:
        raise ValueError(f"{cells // 2} layers have {cells} cells and not {len(graph.cells)} - {place}")
    names = [graph.ids, graph.mask, graph.positions, graph.logits]
    names += [name for cell in graph.cells for name in (cell.past, cell.present)]
    if twice := next((name for name in names if name is not None and names.count(name) > 1), None):
        raise ValueError(f"the name {twice[:40]!r} stands there twice - {place}")


def _linear(name: str, rows: int, columns: int, bias: bool) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield name, (rows, columns)
    if bias:
        yield f"{name}.bias", (rows,)
