"""What each of llama.cpp's architectures computes, and the one that a decoder is written as.

An architecture is a fixed graph with a few keys. The table says which features a graph always has and which it may
have; the first that has all of a decoder's features, and no other, is the decoder's. Its source is llama.cpp's
src/models/<name>.cpp (build 11549; the llama.cpp in llama-cpp-python 0.3.36 has the same graphs).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import sqrt

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.errors import UnsupportedModelError
from edgepack_packager.checkpoint.gguf import names
from edgepack_packager.targets.gguf.features import Feature, features


@dataclass(frozen=True, slots=True)
class Architecture:
    """An architecture: its name in files, the features that it ``always`` has, and those that it ``may`` have.

    ``period``: every so many layers one is without window, unless the file says otherwise; 0 where there are no
    windows. ``needs_window``: llama.cpp ends the process where no layer has one. ``huge_layers``: with so many layers
    llama.cpp takes a model for the one of 27 B, whose scores are scaled by (hidden size / heads) ** -0.5. ``layers``:
    the graph is of models with so many layers alone (0: of any number), ``not_layers``: of all others alone.
    ``scales``: keys say what embeddings, scores, blocks and logits are multiplied by. ``by_layer``: keys say how many
    layers share keys, what layers get of a token, and their sizes; a table says which pairs turn in those without
    window, the scores are as they are, and there must be layers with a window and others. ``both_sides``: a window is
    one to both sides, by a key that has the tokens of both, and there must be layers of both kinds here too.
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
    by_layer: bool = False
    both_sides: bool = False

    def lacks(self, decoder: Decoder) -> list[str]:
        """Return what keeps a decoder from being written as this architecture, in the order of ``Feature``."""
        found = features(decoder)
        missing = [f"lacks {feature}" for feature in Feature if feature in found - self.always - self.may]
        missing += [f"always has {feature}" for feature in Feature if feature in self.always - found]
        if self.layers and decoder.n_layers != self.layers:
            missing.append(f"has windows in models of {self.layers} layers alone")
        if decoder.n_layers == self.not_layers:
            missing.append(f"always has windows in models of {self.not_layers} layers")
        if (self.by_layer or self.both_sides) and len({bool(each.window) for each in decoder.attentions}) < 2:
            missing.append("always has layers with a window and layers without")
        return missing

    def embedding_scale(self, decoder: Decoder) -> float:
        """Return what this architecture multiplies the embeddings by."""
        if self.scales:
            return decoder.embedding_scale
        return sqrt(decoder.hidden_size) if Feature.EMBEDDING_SCALE in self.always else 1.0

    def score_scale(self, decoder: Decoder, attention: Attention) -> float:
        """Return what this architecture multiplies the scores of a layer by."""
        if self.scales:
            return attention.score_scale
        if self.by_layer:
            return 1.0
        if decoder.n_layers == self.huge_layers:
            return 1 / sqrt(decoder.hidden_size // attention.n_heads)
        return 1 / sqrt(attention.head_dim)

    @property
    def fused(self) -> bool:
        """Whether one tensor holds q, k and v."""
        return self.name in names.FUSED


_F = Feature
_ANY = frozenset({_F.QKV_BIAS, _F.HEAD, _F.LINEAR})
_LLAMA = _ANY | {_F.OUTPUT_BIAS, _F.MLP_BIAS, _F.OTHER_WIDTH, _F.LLAMA3, _F.YARN}
_GEMMA = frozenset({_F.GELU, _F.EMBEDDING_SCALE})
_BY_LAYER = frozenset(
    {_F.HEADS_BY_WINDOW, _F.KV_HEADS, _F.MLP_SIZES, _F.SHARED_KEYS, _F.INPUTS, _F.SCALED_LAYERS, _F.PROPORTIONAL}
)
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
    Architecture(
        "gemma4",
        always=_GEMMA | {_F.POST_NORMS, _F.QK_NORM, _F.V_NORM},
        may=_BY_LAYER | {_F.HEAD, _F.LOGITS_SOFTCAP, _F.OTHER_WIDTH, _F.WINDOW, _F.LOCAL_ROPE, _F.FULL_SCALING},
        period=1,
        by_layer=True,
    ),
    Architecture(
        "gemma-embedding",
        always=_GEMMA | {_F.POST_NORMS, _F.QK_NORM, _F.BIDIRECTIONAL},
        may=frozenset({_F.QKV_BIAS, _F.LINEAR, _F.OTHER_WIDTH, _F.WINDOW, _F.FULL_SCALING, _F.LOCAL_ROPE}),
        period=6,
        both_sides=True,
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
    # It looks for a head.
    Architecture("stablelm", always=frozenset({_F.LAYER_NORMS, _F.HEAD}), may=_ANY | {_F.PARTIAL}),
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
