"""What each of llama.cpp's architectures computes, and the one that a decoder is written as.

An architecture is a fixed graph with a few keys. The table says which features a graph always has and which it may
have; the first that has all of a decoder's features, and no other, is the decoder's. Its source is llama.cpp's
src/models/<name>.cpp (build 11549; the llama.cpp in llama-cpp-python 0.3.36 has the same graphs).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from math import sqrt

from msgspec.structs import replace

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from edgepack.errors import UnsupportedModelError
from edgepack_packager.checkpoint.gguf import names


class Feature(StrEnum):
    """What a decoder may have that not every architecture has, in the words of an error message."""

    UNLIKE = "layers of several shapes"
    CONVOLUTIONS = "short convolutions"
    CONVOLUTION_BIAS = "biases in convolutions"
    DELTA_RULES = "gated delta rules"
    OTHER_DELTA_HEADS = "delta rules with other heads of values than of keys"
    GATED = "a gate on the attention's output"
    BIDIRECTIONAL = "attention to what comes after"
    QKV_BIAS = "biases on q, k and v"
    OUTPUT_BIAS = "a bias on the attention's output"
    MLP_BIAS = "biases in the MLP"
    QK_NORM = "norms of q and k"
    WIDE_QK_NORM = "norms of all heads of q and k together"
    ROTATED_QK_NORM = "norms of q and k after their rotation"
    TEMPERATURE = "queries that grow with their position"
    OTHER_TEMPERATURE = "queries that grow by another length than the original context of their rope"
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


_F = Feature
_SCALINGS = {LinearScaling: _F.LINEAR, Llama3Scaling: _F.LLAMA3, LongRopeScaling: _F.LONGROPE, YarnScaling: _F.YARN}

YARN_TURNS = (32.0, 1.0)
"""Between how many turns in the original context llama.cpp has yarn's ramp, where no key says otherwise."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture: its name in files, the features that it ``always`` has, and those that it ``may`` have.

    ``period``: every so many layers one is without window, unless the file says otherwise; 0 where there are no
    windows. ``needs_window``: llama.cpp ends the process where no layer has one. ``huge_layers``: with so many layers
    llama.cpp takes a model for the one of 27 B, whose scores are scaled by (hidden size / heads) ** -0.5. ``layers``:
    the graph is of models with so many layers alone (0: of any number), ``not_layers``: of all others alone.
    ``scales``: keys say what embeddings, scores, blocks and logits are multiplied by.
    """

    name: str
    always: frozenset[Feature] = frozenset()
    may: frozenset[Feature] = frozenset()
    period: int = 0
    needs_window: bool = False
    huge_layers: int = 0
    layers: int = 0
    not_layers: int = 0
    scales: bool = False

    def lacks(self, decoder: Decoder) -> list[str]:
        """Return what keeps a decoder from being written as this architecture, in the order of ``Feature``."""
        found = features(decoder)
        missing = [f"lacks {feature}" for feature in Feature if feature in found - self.always - self.may]
        missing += [f"always has {feature}" for feature in Feature if feature in self.always - found]
        if self.layers and decoder.n_layers != self.layers:
            missing.append(f"has windows in models of {self.layers} layers alone")
        if decoder.n_layers == self.not_layers:
            missing.append(f"always has windows in models of {self.not_layers} layers")
        return missing

    def embedding_scale(self, decoder: Decoder) -> float:
        """Return what this architecture multiplies the embeddings by."""
        if self.scales:
            return decoder.embedding_scale
        return sqrt(decoder.hidden_size) if Feature.EMBEDDING_SCALE in self.always else 1.0

    def score_scale(self, decoder: Decoder) -> float:
        """Return what this architecture multiplies the scores by."""
        if self.scales:
            return decoder.attentions[0].score_scale
        if decoder.n_layers == self.huge_layers:
            return 1 / sqrt(decoder.hidden_size // decoder.attentions[0].n_heads)
        return 1 / sqrt(decoder.attentions[0].head_dim)

    @property
    def fused(self) -> bool:
        """Whether one tensor holds q, k and v."""
        return self.name in names.FUSED


_ANY = frozenset({_F.QKV_BIAS, _F.HEAD, _F.LINEAR})
_LLAMA = _ANY | {_F.OUTPUT_BIAS, _F.MLP_BIAS, _F.OTHER_WIDTH, _F.LLAMA3, _F.YARN}
_GEMMA = frozenset({_F.GELU, _F.EMBEDDING_SCALE})
_EXAONE4 = frozenset({_F.QK_NORM, _F.NORMS_AFTER})

ARCHITECTURES = (
    # The llama graph computes the same, but files of models with these biases alone are qwen2's.
    Architecture("qwen2", always=frozenset({_F.QKV_BIAS}), may=_ANY | {_F.YARN}),
    Architecture("llama", may=_LLAMA),
    Architecture("qwen3", always=frozenset({_F.QK_NORM}), may=_ANY | {_F.OTHER_WIDTH, _F.YARN}),
    # It reads the key of a window, and then ignores it.
    Architecture("phi3", may=_ANY | {_F.PARTIAL, _F.LONGROPE}),
    Architecture("smollm3", always=frozenset({_F.FOURTH_WITHOUT_ROPE}), may=_ANY | {_F.OTHER_WIDTH}),
    Architecture("gemma", always=_GEMMA, may=frozenset({_F.QKV_BIAS, _F.LINEAR, _F.OTHER_WIDTH})),
    Architecture(
        "gemma2",
        always=_GEMMA | {_F.POST_NORMS, _F.ATTENTION_SOFTCAP, _F.LOGITS_SOFTCAP},
        may=frozenset({_F.QKV_BIAS, _F.LINEAR, _F.LINEAR_LOCAL, _F.OTHER_WIDTH, _F.WINDOW}),
        period=2,
        needs_window=True,
        huge_layers=46,
    ),
    Architecture(
        "gemma3",
        always=_GEMMA | {_F.POST_NORMS, _F.QK_NORM},
        may=_ANY | {_F.LOGITS_SOFTCAP, _F.OTHER_WIDTH, _F.WINDOW, _F.FULL_SCALING, _F.LOCAL_ROPE},
        period=6,
        huge_layers=62,
    ),
    Architecture("mistral3", may=_LLAMA | {_F.TEMPERATURE, _F.OTHER_TURNS}),
    Architecture(
        "granite",
        may=_LLAMA | {_F.RESIDUAL_SCALE, _F.LOGITS_SCALE, _F.EMBEDDING_SCALE, _F.OTHER_EMBEDDING_SCALE},
        scales=True,
    ),
    # It looks for a head, and scales the rope of no layer with a window.
    Architecture(
        "olmo2",
        always=frozenset({_F.WIDE_QK_NORM, _F.NORMS_AFTER, _F.HEAD}),
        may=frozenset({_F.QKV_BIAS, _F.LINEAR, _F.YARN, _F.WINDOW, _F.FULL_SCALING}),
        period=4,
    ),
    Architecture("exaone4", always=_EXAONE4, may=_ANY | {_F.LLAMA3}, not_layers=64),
    Architecture(
        "exaone4",
        always=_EXAONE4 | {_F.FULL_WITHOUT_ROPE},
        may=_ANY | {_F.LINEAR_LOCAL, _F.LLAMA3, _F.WINDOW},
        period=4,
        layers=64,
    ),
    Architecture(
        "qwen35",
        always=frozenset({_F.DELTA_RULES, _F.GATED, _F.QK_NORM}),
        may=frozenset({_F.HEAD, _F.OTHER_WIDTH, _F.PARTIAL}),
    ),
    Architecture("lfm2", always=frozenset({_F.CONVOLUTIONS, _F.QK_NORM}), may=frozenset({_F.HEAD})),
    Architecture("hunyuan-dense", always=frozenset({_F.ROTATED_QK_NORM}), may=_ANY | {_F.OTHER_WIDTH}),
)


@lru_cache(maxsize=16)
def choose(decoder: Decoder) -> Architecture:
    """Return the first architecture that computes a decoder.

    Raises ``UnsupportedModelError`` with what the closest ones lack, and with the context at which it would not matter
    where that is a window.
    """
    lacking = {architecture: architecture.lacks(decoder) for architecture in ARCHITECTURES}
    fewest = min(map(len, lacking.values()))
    closest = {architecture: lacks for architecture, lacks in lacking.items() if len(lacks) == fewest}
    if not fewest:
        return next(iter(closest))
    hint = "Build the other targets."
    windows = {f"lacks {Feature.WINDOW}", f"lacks {Feature.SEVERAL_WINDOWS}"}
    if any(windows.issuperset(lacks) for lacks in closest.values()):
        hint = f"Build with --context {decoder.windows[0]}, within which the window hides nothing."
    reasons: dict[str, str] = {}  # the first architecture of those that lack the same
    for architecture, lacks in closest.items():
        reasons.setdefault(" and ".join(lacks), architecture.name)
    raise UnsupportedModelError(
        "llama.cpp has no architecture that computes this model: "
        f"{', '.join(f'{name} {lacks}' for lacks, name in reasons.items())}.",
        hint=hint,
    )


def features(decoder: Decoder) -> frozenset[Feature]:
    """Return a decoder's features."""
    layer, attention = decoder.layer(0), decoder.attentions[0]
    has = {
        Feature.UNLIKE: not decoder.alike,
        Feature.CONVOLUTIONS: bool(decoder.convolving),
        Feature.DELTA_RULES: bool(decoder.correcting),
        Feature.OTHER_DELTA_HEADS: any(
            (each.n_key_heads, each.key_dim) != (each.n_value_heads, each.value_dim)
            for each in decoder.correcting.values()
        ),
        Feature.GATED: attention.gated,
        Feature.CONVOLUTION_BIAS: any(each.bias for each in decoder.convolving.values()),
        Feature.BIDIRECTIONAL: decoder.at_once,
        Feature.QKV_BIAS: attention.qkv_bias,
        Feature.OUTPUT_BIAS: attention.output_bias,
        Feature.MLP_BIAS: layer.mlp.bias,
        Feature.QK_NORM: attention.qk_norm == "head",
        Feature.WIDE_QK_NORM: attention.qk_norm == "width",
        Feature.ROTATED_QK_NORM: attention.qk_norm == "rotated",
        Feature.TEMPERATURE: attention.temperature is not None,
        Feature.OTHER_TEMPERATURE: _grows_by_another_length(decoder),
        Feature.POST_NORMS: layer.norms == "both",
        Feature.NORMS_AFTER: layer.norms == "after",
        Feature.RESIDUAL_SCALE: layer.residual_scale != 1,
        Feature.LOGITS_SCALE: decoder.logits_scale != 1,
        Feature.GELU: layer.mlp.activation == "gelu_tanh",
        Feature.ATTENTION_SOFTCAP: attention.softcap is not None,
        Feature.LOGITS_SOFTCAP: decoder.logits_softcap is not None,
        Feature.HEAD: not decoder.tied,
        Feature.OTHER_WIDTH: attention.q_size != decoder.hidden_size,
    }
    found = {feature for feature, present in has.items() if present}
    if decoder.embedding_scale != 1:
        # The published scales are the root, rounded to the weights' type: bf16 has 8 bits.
        rounded = abs(decoder.embedding_scale / sqrt(decoder.hidden_size) - 1) <= 2**-8
        found.add(Feature.EMBEDDING_SCALE if rounded else Feature.OTHER_EMBEDDING_SCALE)
    return frozenset(found | _of_positions(decoder))


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
    if Feature.WINDOW not in found and len(local | other) == 1:
        local, other = set(), local | other  # windows that hide nothing, on which nothing else depends
    if len(local) > 1 or len(other) > 1:
        found.add(Feature.OTHER_ROPES)
    elif local and other and local != other:
        plain = {replace(rope, scaling=None) for rope in other}
        found.add(Feature.FULL_SCALING if local == plain else Feature.LOCAL_ROPE)
    for rope in local | other:
        if rope.dim != decoder.attentions[0].head_dim:
            found.add(Feature.PARTIAL)
        if isinstance(yarn := rope.scaling, YarnScaling):
            found |= _of_yarn(yarn)
    found |= {_SCALINGS[type(rope.scaling)] for rope in other if rope.scaling}
    found |= {_local(_SCALINGS[type(rope.scaling)]) for rope in local if rope.scaling}
    return found


def _local(scaling: Feature) -> Feature:
    return {Feature.LINEAR: Feature.LINEAR_LOCAL, Feature.YARN: Feature.YARN_LOCAL}.get(scaling, scaling)


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
