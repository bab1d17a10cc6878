"""What a decoder may have that not every architecture of llama.cpp has."""

from __future__ import annotations

from enum import StrEnum
from math import sqrt

from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder, Layer
from edgepack.bundle.rope import (
    LinearScaling,
    Llama3Scaling,
    LongRopeScaling,
    ProportionalScaling,
    Rope,
    YarnScaling,
)


class Feature(StrEnum):
    """What a decoder may have that not every architecture has, in the words of an error message."""

    UNLIKE = "layers of several shapes"
    HEADS_BY_WINDOW = "heads of another size in layers with a window"
    KV_HEADS = "several numbers of KV heads"
    MLP_SIZES = "MLPs of several sizes"
    SHARED_KEYS = "layers that read the keys of others"
    OTHER_SHARED_KEYS = "shared keys of others than the last two layers that have some, with a window and without"
    INPUTS = "inputs of layers"
    SCALED_LAYERS = "scaled layers"
    CONVOLUTIONS = "short convolutions"
    CONVOLUTION_BIAS = "biases in convolutions"
    DELTA_RULES = "gated delta rules"
    OTHER_DELTA_SIZES = "delta rules with heads of values of another size than those of keys"
    NARROW_DELTA_HEADS = "delta rules with more heads of values than of keys, of a size that is no multiple of 32"
    GATED = "a gate on the attention's output"
    HEAD_GATES = "a gate on each head"
    BIDIRECTIONAL = "attention to what comes after"
    QKV_BIAS = "biases on q, k and v"
    OUTPUT_BIAS = "a bias on the attention's output"
    MLP_BIAS = "biases in the MLP"
    QK_NORM = "norms of q and k"
    WIDE_QK_NORM = "norms of all heads of q and k together"
    ROTATED_QK_NORM = "norms of q and k after their rotation"
    V_NORM = "norms of v"
    TEMPERATURE = "queries that grow with their position"
    OTHER_TEMPERATURE = "queries that grow by another length than the original context of their rope"
    LAYER_NORMS = "LayerNorms with biases"
    POST_NORMS = "norms after each block"
    NORMS_AFTER = "norms after each block and none before"
    RESIDUAL_SCALE = "blocks whose output is scaled"
    LOGITS_SCALE = "scaled logits"
    GELU = "gelu"
    ATTENTION_SOFTCAP = "a softcap on the scores"
    LOGITS_SOFTCAP = "a softcap on the logits"
    EMBEDDING_SCALE = "embeddings times the root of their size"
    OTHER_EMBEDDING_SCALE = "embeddings times another number than the root of their size"
    HEAD = "a head of its own"
    OTHER_WIDTH = "heads that together are not as wide as the hidden size"
    PARTIAL = "heads of which a part is rotated"
    LINEAR = "linear rope scaling"
    LINEAR_LOCAL = "linear rope scaling in layers with a window"
    LLAMA3 = "llama3 rope scaling"
    LONGROPE = "longrope scaling"
    YARN = "yarn rope scaling"
    YARN_LOCAL = "yarn rope scaling in layers with a window"
    PROPORTIONAL = "proportional rope scaling"
    PROPORTIONAL_LOCAL = "proportional rope scaling in layers with a window"
    OTHER_TURNS = "a yarn ramp between other turns than 32 and 1"
    OTHER_RAMP = "a yarn ramp that is not one between two whole pairs"
    FOURTH_WITHOUT_ROPE = "every fourth layer without rope"
    FULL_WITHOUT_ROPE = "no rope in layers without window"
    OTHER_WITHOUT_ROPE = "layers without rope that are not every fourth"
    WINDOW = "attention windows"
    SEVERAL_WINDOWS = "windows of several sizes"
    FULL_SCALING = "rope scaling in layers without window alone"
    LOCAL_ROPE = "a rope of its own for layers with a window"
    OTHER_ROPES = "ropes that do not follow the windows"


_SCALINGS = {
    LinearScaling: Feature.LINEAR,
    Llama3Scaling: Feature.LLAMA3,
    LongRopeScaling: Feature.LONGROPE,
    YarnScaling: Feature.YARN,
    ProportionalScaling: Feature.PROPORTIONAL,
}
_LOCAL = {
    Feature.LINEAR: Feature.LINEAR_LOCAL,
    Feature.YARN: Feature.YARN_LOCAL,
    Feature.PROPORTIONAL: Feature.PROPORTIONAL_LOCAL,
}

BLOCK = 32
"""Columns of which any type but those for grids has a scale of their own, or of fewer."""

YARN_TURNS = (32.0, 1.0)
"""Between how many turns in the original context llama.cpp has yarn's ramp, where no key says otherwise."""


def features(decoder: Decoder) -> frozenset[Feature]:
    """Return a decoder's features."""
    layer, attention = decoder.layer(0), decoder.attentions[0]
    has = {
        Feature.UNLIKE: _unlike(decoder),
        Feature.HEADS_BY_WINDOW: len({each.head_dim for each in decoder.attentions}) > 1,
        Feature.KV_HEADS: len({each.n_kv_heads for each in decoder.attentions}) > 1,
        Feature.MLP_SIZES: len({kind.mlp.size for kind in decoder.kinds}) > 1,
        Feature.INPUTS: bool(decoder.inputs),
        Feature.SCALED_LAYERS: any(kind.scaled for kind in decoder.kinds),
        Feature.CONVOLUTIONS: bool(decoder.convolving),
        Feature.DELTA_RULES: bool(decoder.correcting),
        Feature.OTHER_DELTA_SIZES: any(each.key_dim != each.value_dim for each in decoder.correcting.values()),
        # Their columns are moved: in a block are neighbours of the model as well if a head fills it.
        Feature.NARROW_DELTA_HEADS: any(
            each.n_value_heads != each.n_key_heads and each.value_dim % BLOCK for each in decoder.correcting.values()
        ),
        Feature.GATED: attention.gated is True,
        Feature.HEAD_GATES: attention.gated == "heads",
        Feature.CONVOLUTION_BIAS: any(each.bias for each in decoder.convolving.values()),
        Feature.BIDIRECTIONAL: decoder.at_once,
        Feature.QKV_BIAS: attention.qkv_bias,
        Feature.OUTPUT_BIAS: attention.output_bias,
        Feature.MLP_BIAS: layer.mlp.bias,
        Feature.QK_NORM: attention.qk_norm == "head",
        Feature.WIDE_QK_NORM: attention.qk_norm == "width",
        Feature.ROTATED_QK_NORM: attention.qk_norm == "rotated",
        Feature.V_NORM: any(each.v_norm for each in decoder.keeping.values()),
        Feature.TEMPERATURE: attention.temperature is not None,
        Feature.OTHER_TEMPERATURE: _grows_by_another_length(decoder),
        Feature.LAYER_NORMS: bool(decoder.norm),
        Feature.POST_NORMS: layer.norms == "both",
        Feature.NORMS_AFTER: layer.norms == "after",
        Feature.RESIDUAL_SCALE: layer.residual_scale != 1,
        Feature.LOGITS_SCALE: decoder.logits_scale != 1,
        Feature.GELU: layer.mlp.activation == "gelu_tanh",
        Feature.ATTENTION_SOFTCAP: attention.softcap is not None,
        Feature.LOGITS_SOFTCAP: decoder.logits_softcap is not None,
        Feature.HEAD: not decoder.tied,
        Feature.OTHER_WIDTH: any(each.q_size != decoder.hidden_size for each in decoder.attentions),
    }
    found = {feature for feature, present in has.items() if present}
    if decoder.embedding_scale != 1:
        # The published scales are the root, rounded to the weights' type: bf16 has 8 bits.
        rounded = abs(decoder.embedding_scale / sqrt(decoder.hidden_size) - 1) <= 2**-8
        found.add(Feature.EMBEDDING_SCALE if rounded else Feature.OTHER_EMBEDDING_SCALE)
    return frozenset(found | _of_sharing(decoder) | _of_positions(decoder))


def _unlike(decoder: Decoder) -> bool:
    """Whether layers with the same type of mixer differ in what no architecture's layers differ in."""
    normed = {bool(each.v_norm) for each in decoder.keeping.values()}
    sizes = {(bool(each.window), each.head_dim) for each in decoder.attentions}
    if len(normed) > 1 or len(sizes) > len({windowed for windowed, _ in sizes}):
        return True
    return len({_common(kind) for kind in decoder.kinds}) > len({type(kind.mixer) for kind in decoder.kinds})


def _common(layer: Layer) -> Layer:
    """Return a layer without what has a feature of its own where layers differ in it."""
    mixer = layer.mixer
    if isinstance(mixer, Attention):
        mixer = replace(mixer, rope=None, window=None, head_dim=1, n_kv_heads=1, v_norm=UNSET, kv_layer=UNSET)
    return replace(layer, mixer=mixer, mlp=replace(layer.mlp, size=1), scaled=UNSET)


def _of_sharing(decoder: Decoder) -> set[Feature]:
    read = {index: each.kv_layer for index, each in decoder.attending.items() if not each.owns}
    own = len(decoder.keeping)
    last = {index: own - (2 if each.window else 1) for index, each in decoder.attending.items() if index >= own}
    if not read:
        return set()
    return {Feature.SHARED_KEYS} if read == last else {Feature.SHARED_KEYS, Feature.OTHER_SHARED_KEYS}


def ropes(decoder: Decoder) -> tuple[Rope, Rope]:
    """Return the rope of the layers without window and that of those with one; of both, where one kind is missing."""
    layers = decoder.attentions
    first = next(layer.rope for layer in layers if layer.rope)
    return (
        next((layer.rope for layer in layers if layer.rope and layer.window is None), first),
        next((layer.rope for layer in layers if layer.rope and layer.window), first),
    )


def _of_positions(decoder: Decoder) -> set[Feature]:
    layers = decoder.attentions
    found = _without_rope(decoder)
    sizes = {layer.window for layer in layers if layer.window}
    if any(size < decoder.context for size in sizes):
        found.add(Feature.WINDOW)
        if len(sizes) > 1:
            found.add(Feature.SEVERAL_WINDOWS)
    local = {layer.rope for layer in layers if layer.rope and layer.window}
    other = {layer.rope for layer in layers if layer.rope and not layer.window}
    proportional = any(isinstance(rope.scaling, ProportionalScaling) for rope in local)
    if Feature.WINDOW not in found and len(local | other) == 1 and not proportional:
        local, other = set(), local | other  # windows that hide nothing, on which nothing else depends
    if len(local) > 1 or len(other) > 1:
        found.add(Feature.OTHER_ROPES)
    elif local and other and local != other:
        plain = {replace(rope, scaling=None) for rope in other}
        found.add(Feature.FULL_SCALING if local == plain else Feature.LOCAL_ROPE)
    if any(layer.rope and layer.rope.dim != layer.head_dim for layer in layers):
        found.add(Feature.PARTIAL)
    for rope in local | other:
        if isinstance(yarn := rope.scaling, YarnScaling):
            found |= _of_yarn(yarn)
    found |= {_SCALINGS[type(rope.scaling)] for rope in other if rope.scaling}
    scaled = (_SCALINGS[type(rope.scaling)] for rope in local if rope.scaling)
    return found | {_LOCAL.get(scaling, scaling) for scaling in scaled}


def _without_rope(decoder: Decoder) -> set[Feature]:
    layers = decoder.attentions
    silent = [index for index, layer in enumerate(layers) if layer.rope is None]
    if not silent:
        return set()
    full = [index for index, layer in enumerate(layers) if layer.window is None]
    if silent == full and len(full) < len(layers):
        return {Feature.FULL_WITHOUT_ROPE}
    every_fourth = silent == list(range(3, decoder.n_layers, 4))
    return {Feature.FOURTH_WITHOUT_ROPE if every_fourth else Feature.OTHER_WITHOUT_ROPE}


def _of_yarn(yarn: YarnScaling) -> set[Feature]:
    turns = (yarn.beta_fast, yarn.beta_slow)
    found = {Feature.OTHER_TURNS} if turns != YARN_TURNS else set()
    return found | ({Feature.OTHER_RAMP} if not yarn.whole or turns[0] <= turns[1] else set())


def _grows_by_another_length(decoder: Decoder) -> bool:
    """One key holds both."""
    scalings = [rope.scaling for rope in decoder.ropes]
    originals = {each.original_context for each in scalings if isinstance(each, YarnScaling | LongRopeScaling)}
    return bool(decoder.temperatures) and not originals <= {each.length for each in decoder.temperatures}
