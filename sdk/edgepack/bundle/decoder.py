"""The decoder: one description of a model, read by the reference, by every target and by every runtime.

It says of each layer what it is, and knows the names and shapes of the canonical tensors. It does not know Hugging Face
names, file formats or engines: a family turns a checkpoint into this description, once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Literal, TypedDict, TypeVar

import msgspec

from edgepack.bundle import exported
from edgepack.bundle.bounds import MAX_LAYERS, Count, Layers, Positive, Width
from edgepack.bundle.exported import Exported
from edgepack.bundle.mixers import Attention as Attention
from edgepack.bundle.mixers import Convolution as Convolution
from edgepack.bundle.mixers import Delta as Delta
from edgepack.bundle.mixers import Mixer as Mixer
from edgepack.bundle.mixers import Shape as Shape
from edgepack.bundle.mixers import Temperature as Temperature
from edgepack.bundle.mixers import linear
from edgepack.bundle.rope import LongRopeScaling, Rope

_Mixer = TypeVar("_Mixer", Attention, Convolution, Delta)

KvCache = Literal["f32", "f16", "q8"]
"""The element type of a KV cache; "q8": 8 bits and a scale for some of them, as the engine has it."""


NormKind = Literal["layer"] | msgspec.UnsetType
"""What the norms over the hidden size are: LayerNorms, each with a bias, or RMSNorms where nothing is said."""


class Mlp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """down(activation(gate(x)) * up(x)), ``size`` elements wide between."""

    size: Width
    activation: Literal["silu", "gelu_tanh"] = "silu"
    bias: bool = False

    def tensors(self, hidden: int) -> Iterator[tuple[str, Shape]]:
        """Yield (name, shape) of its tensors, without its norms."""
        yield from linear("gate", self.size, hidden, self.bias)
        yield from linear("up", self.size, hidden, self.bias)
        yield from linear("down", hidden, self.size, self.bias)


class Layer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Two blocks, each added to what comes in: the mixer, through which positions see each other, and the MLP.

    ``norms`` are norms of a block's input, of its output "after", or of "both". What is added is multiplied by
    ``residual_scale``. With ``inputs`` a third block follows, of what the layer gets of the token itself, so many
    elements p (see ``Decoder``): norm(out(activation(gate(x)) * p)), with the MLP's activation. With ``scaled`` the
    layer's result is multiplied by a number of its own.
    """

    mixer: Mixer
    mlp: Mlp
    norms: Literal["before", "after", "both"] = "before"
    residual_scale: Positive = 1.0
    inputs: Width | msgspec.UnsetType = msgspec.UNSET
    scaled: Literal[True] | msgspec.UnsetType = msgspec.UNSET

    @property
    def pre_norms(self) -> bool:
        """Whether there is a norm of each block's input."""
        return self.norms != "after"

    @property
    def post_norms(self) -> bool:
        """Whether there is a norm of each block's output."""
        return self.norms != "before"

    def tensors(self, hidden: int, norm: NormKind = msgspec.UNSET) -> Iterator[tuple[str, Shape]]:
        """Yield (name within the layer, shape) in model order; a matrix is [output rows, input columns]."""
        for block, name in ((self.mixer, self.mixer.room), (self.mlp, "mlp")):
            if self.pre_norms:
                yield from _norm(f"{name}.norm", hidden, norm)
            for part, shape in block.tensors(hidden):
                yield f"{name}.{part}", shape
            if self.post_norms:
                yield from _norm(f"{name}.post_norm", hidden, norm)
        if self.inputs:
            yield "inputs.gate", (self.inputs, hidden)
            yield "inputs.out", (hidden, self.inputs)
            yield from _norm("inputs.post_norm", hidden, norm)
        if self.scaled:
            yield "scale", (1,)


class Arrangement(TypedDict):
    """Which layers a decoder has, as its two fields."""

    kinds: tuple[Layer, ...]
    pattern: tuple[int, ...]


def arranged(layers: Sequence[Layer]) -> Arrangement:
    """Return layers as their kinds, in the order in which they come first, and the shortest pattern of those."""
    kinds = tuple(dict.fromkeys(layers))
    order = [kinds.index(layer) for layer in layers]
    fitting = (n for n in range(1, len(order)) if all(kind == order[i % n] for i, kind in enumerate(order)))
    return Arrangement(kinds=kinds, pattern=tuple(order[: next(fitting, len(order))]))


class Decoder(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A decoder-only transformer, as ``edgepack_packager.reference`` runs it.

    Sizes are counts of elements. ``n_vocab`` is the number of rows of the embedding, which may exceed the tokenizer's
    entries. ``context`` is the number of positions that the description holds for, ``trained_context`` what the model
    was trained for. ``pattern`` numbers ``kinds`` of layers and is repeated until every layer has its own.

    In the order of the computation: ``embedding_scale`` multiplies the embeddings, the layers follow, then a norm and
    the head, which is the embedding where the two are ``tied``; ``logits_scale`` multiplies the logits, and a softcap c
    makes c tanh(x / c) of them.
    Where layers have ``inputs`` of s elements, those of all are (norm(projection(x) / root of the hidden size) + e root
    of s) / root of 2: x is the scaled embedding of the token, e its row of ``inputs.embedding``, and the norm that of
    each layer's part.
    Norms over the hidden size are RMSNorms, w x / sqrt(mean(x^2) + eps), or with ``norm`` "layer" LayerNorms,
    w (x - mean(x)) / sqrt(var(x) + eps) + b. All other norms are RMSNorms.
    ``wide``: activations exceed the range of f16, so that an engine that computes in 16 bits must take bf16.

    A ``headless`` one ends at the last norm: what it gives after each token is a state, of which an embedding is made.
    It is ``tied``, as it has no tensor for a head.

    With ``exported`` the computation is that of a graph which edgepack did not write. Only the sizes then say anything
    of the model, and ``tied``: it has no canonical tensors, each layer keeps all positions, and the fields that
    describe a computation describe none.
    """

    family: str
    architecture: str
    n_layers: Layers
    hidden_size: Width
    n_vocab: Width
    context: Count
    trained_context: Count
    norm_eps: Positive
    norm: NormKind = msgspec.UNSET
    kinds: Annotated[tuple[Layer, ...], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)]
    pattern: Annotated[tuple[int, ...], msgspec.Meta(min_length=1, max_length=MAX_LAYERS)] = (0,)
    tied: bool
    embedding_scale: Positive = 1.0
    logits_scale: Positive = 1.0
    logits_softcap: Positive | None = None
    wide: bool = False
    headless: Literal[True] | msgspec.UnsetType = msgspec.UNSET
    exported: Exported | msgspec.UnsetType = msgspec.UNSET

    def layer(self, index: int) -> Layer:
        """Return what a layer is."""
        return self.kinds[self.pattern[index % len(self.pattern)]]

    def attention(self, index: int) -> Attention:
        """Return the attention of a layer that has one."""
        mixer = self.layer(index).mixer
        assert isinstance(mixer, Attention)
        return mixer

    @property
    def inputs(self) -> int:
        """Elements that each layer gets of a token itself, 0 where layers get none."""
        return self.kinds[0].inputs or 0

    @property
    def looked_up(self) -> frozenset[str]:
        """The matrices of which a token reads its row, and that multiply nothing."""
        own = {"inputs.embedding"} if self.inputs else set()
        return frozenset(own if self.tied and not self.headless else own | {"embedding"})

    @property
    def outputs(self) -> int:
        """Numbers that it gives after each token: logits, or without a head the elements of a state."""
        return self.hidden_size if self.headless else self.n_vocab

    @property
    def at_once(self) -> bool:
        """Whether a text is evaluated in one step, since its tokens see those after them."""
        return bool(self.attentions[0].bidirectional)

    @property
    def layers(self) -> tuple[Layer, ...]:
        """All layers, in order."""
        return tuple(map(self.layer, range(self.n_layers)))

    @property
    def attending(self) -> dict[int, Attention]:
        """The attention of each layer that has one, by its index, in order."""
        return self._having(Attention)

    @property
    def keeping(self) -> dict[int, Attention]:
        """The attention of each layer that has keys and values of its own, by its index, in order."""
        return {index: attention for index, attention in self.attending.items() if attention.owns}

    @property
    def cached(self) -> dict[int, Attention]:
        """The attention of each layer that keeps the keys and values of a step for the next, by its index, in order."""
        return {} if self.at_once else self.keeping

    @property
    def convolving(self) -> dict[int, Convolution]:
        """The short convolution of each layer that has one, by its index, in order."""
        return self._having(Convolution)

    @property
    def correcting(self) -> dict[int, Delta]:
        """The delta rule of each layer that has one, by its index, in order."""
        return self._having(Delta)

    def _having(self, kind: type[_Mixer]) -> dict[int, _Mixer]:
        return {index: layer.mixer for index, layer in enumerate(self.layers) if isinstance(layer.mixer, kind)}

    @property
    def attentions(self) -> tuple[Attention, ...]:
        """The attention of each layer that has one, in order; there is at least one."""
        return tuple(self.attending.values())

    @property
    def alike(self) -> bool:
        """Whether all layers with the same type of mixer are alike but for the positions that they see, and how."""
        return len({_without_positions(kind) for kind in self.kinds}) == len({type(kind.mixer) for kind in self.kinds})

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """The distinct ropes, in the order of the layers."""
        return tuple(dict.fromkeys(attention.rope for attention in self.attentions if attention.rope))

    @property
    def temperatures(self) -> tuple[Temperature, ...]:
        """The distinct temperatures, in the order of the layers."""
        return tuple(dict.fromkeys(each.temperature for each in self.attentions if each.temperature))

    @property
    def windows(self) -> tuple[int, ...]:
        """The distinct windows that are shorter than the context, ascending."""
        sizes = {attention.window for attention in self.attentions if attention.window}
        return tuple(sorted(size for size in sizes if size < self.context))

    @property
    def head_multiple(self) -> int:
        """The least number of rows that are whole heads in every layer."""
        return math.lcm(*(attention.head_dim for attention in self.attentions))

    @property
    def kv_values_per_token(self) -> int:
        """Elements that one token adds to the KV cache over all layers."""
        return 2 * sum(attention.kv_size for attention in self.cached.values())

    @property
    def states(self) -> dict[tuple[str, int], Shape]:
        """The shape of all that layers keep whatever the number of tokens, by what it is and the layer's index."""
        return {
            (part, index): shape
            for index, layer in enumerate(self.layers)
            if not isinstance(layer.mixer, Attention)
            for part, shape in layer.mixer.states(self.hidden_size).items()
        }

    @property
    def n_parameters(self) -> int:
        """Elements of all canonical tensors."""
        return self.exported.n_parameters if self.exported else sum(math.prod(shape) for _, shape in self.tensors())

    def tensors(self) -> Iterator[tuple[str, Shape]]:
        """Yield (canonical name, shape) of every tensor in model order; a matrix is [output rows, input columns]."""
        if self.exported:
            return
        yield "embedding", (self.n_vocab, self.hidden_size)
        if self.inputs:
            yield "inputs.embedding", (self.n_vocab, self.n_layers * self.inputs)
            yield "inputs.projection", (self.n_layers * self.inputs, self.hidden_size)
            yield "inputs.norm", (self.inputs,)
        for index in range(self.n_layers):
            for name, shape in self.layer(index).tensors(self.hidden_size, self.norm):
                yield f"layers.{index}.{name}", shape
        yield from _norm("norm", self.hidden_size, self.norm)
        if not self.tied:
            yield "head", (self.n_vocab, self.hidden_size)


def _norm(name: str, size: int, kind: NormKind) -> Iterator[tuple[str, Shape]]:
    yield name, (size,)
    if kind:
        yield f"{name}.bias", (size,)


def layer_of(name: str) -> int:
    """Return the index of the layer that a canonical tensor is in: 3 of "layers.3.attention.q"."""
    return int(name.split(".", 2)[1])


def check(decoder: Decoder) -> None:
    """Raise ``ValueError`` for numbers that contradict each other; each alone is within its bounds."""
    if len(set(decoder.kinds)) < len(decoder.kinds) or {*decoder.pattern} != {*range(len(decoder.kinds))}:
        raise ValueError("the pattern does not number each kind of layer once described - at `$.decoder.pattern`")
    for index, kind in enumerate(decoder.kinds):
        place = f"at `$.decoder.kinds[{index}].mixer`"
        if isinstance(kind.mixer, Attention):
            _check_attention(kind.mixer, place)
        if isinstance(kind.mixer, Delta) and kind.mixer.n_value_heads % kind.mixer.n_key_heads:
            raise ValueError(f"{kind.mixer.n_value_heads} heads do not share {kind.mixer.n_key_heads} - {place}")
    if len({kind.inputs for kind in decoder.kinds}) > 1:
        raise ValueError("layers get unlike parts of a token - at `$.decoder.kinds`")
    attending = decoder.attending
    for index, attention in attending.items():
        _check_source(attending, index, attention)
    if not attending:
        raise ValueError("no layer is an attention - at `$.decoder.pattern`")
    if decoder.headless and (not decoder.tied or decoder.logits_scale != 1 or decoder.logits_softcap):
        raise ValueError("a model without a head has one that is not the embedding - at `$.decoder.headless`")
    seen = {bool(kind.mixer.bidirectional) for kind in decoder.kinds if isinstance(kind.mixer, Attention)}
    if seen != {False} and (seen != {True} or not decoder.headless or decoder.states):
        raise ValueError(
            "a model that writes, or some of its layers alone, see what comes after - at `$.decoder.kinds`"
        )
    if decoder.exported and decoder.exported.graph:
        exported.check(decoder.exported.graph, decoder.n_layers)


def _check_attention(attention: Attention, place: str) -> None:
    if attention.n_heads % attention.n_kv_heads:
        raise ValueError(f"{attention.n_heads} heads do not share {attention.n_kv_heads} KV heads - {place}")
    if (rope := attention.rope) is None:
        return
    if rope.dim % 2 or rope.dim > attention.head_dim:
        raise ValueError(f"a rope of {rope.dim} does not fit heads of {attention.head_dim} - {place}")
    if isinstance(rope.scaling, LongRopeScaling) and len(rope.scaling.factors) != rope.dim // 2:
        raise ValueError(f"a rope of {rope.dim} has {len(rope.scaling.factors)} factors - {place}")


def _check_source(attending: Mapping[int, Attention], index: int, attention: Attention) -> None:
    if isinstance(attention.kv_layer, msgspec.UnsetType):
        return
    kept = attention.kv_layer < index and not attention.bidirectional
    source = attending.get(attention.kv_layer) if kept else None
    like = ("n_kv_heads", "head_dim", "window")
    if not source or not source.owns or any(getattr(source, each) != getattr(attention, each) for each in like):
        raise ValueError(f"layer {index} cannot read the keys of layer {attention.kv_layer} - at `$.decoder.pattern`")


def _without_positions(layer: Layer) -> Layer:
    if not isinstance(layer.mixer, Attention):
        return layer
    return msgspec.structs.replace(layer, mixer=msgspec.structs.replace(layer.mixer, rope=None, window=None))
