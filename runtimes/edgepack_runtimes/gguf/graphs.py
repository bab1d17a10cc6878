"""The graphs of llama.cpp's architectures, as far as a file can differ from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final


@dataclass(frozen=True, slots=True)
class Graph:
    """What an architecture computes whatever the keys say, and what it assumes where they say nothing.

    ``logits_softcap``: None where there never is one, 0 where there is none unless a key says so. ``period``: one layer
    in so many has no window; 0: none has one. ``window`` and ``local_base`` are assumed (None: no windows, and the base
    of the other layers; ``one_base``: always that). ``local_scaling``: linear rope scaling holds for local layers as
    well. ``scales``: keys say what scores, embeddings, blocks and logits are multiplied by. ``temperature``: queries
    may grow with their position. ``yarn``: a rope may be scaled so; ``turns``: keys may say where its ramp lies.
    ``convolutions``: a layer without heads of keys and values has one. ``delta_rules``: layers that a key names have
    one, and the output of the others is gated. ``layer_norms``: the norms over the hidden size are LayerNorms, and what
    a file lacks of one makes another graph. ``v_norm``: as in ``Attention``. ``by_layer``: as in ``layers``; a table
    says which pairs turn in those without window. ``both_sides``: a token sees what comes after, and a key says how
    many tokens a window has on both sides together, without its own.
    """

    activation: str = "silu"
    qk_norm: str | None = None
    norms: str = "before"
    scaled_embedding: bool = False
    scales: bool = False
    temperature: bool = False
    yarn: bool = False
    turns: bool = False
    fourth_without_rope: bool = False
    full_without_rope: bool = False
    partial_rotation: bool = False
    attention_softcap: float | None = None
    logits_softcap: float | None = None
    period: int = 0
    window: int | None = None
    local_base: float | None = None
    one_base: bool = False
    local_scaling: bool = False
    convolutions: bool = False
    delta_rules: bool = False
    layer_norms: bool = False
    v_norm: bool = False
    by_layer: bool = False
    both_sides: bool = False


_GEMMA: Final = Graph("gelu_tanh", scaled_embedding=True)
_GEMMA2: Final = replace(_GEMMA, norms="both", logits_softcap=0.0)
_GEMMA3: Final = replace(_GEMMA2, qk_norm="head", period=6, local_base=10000.0)
GRAPHS: Final[Mapping[str, Graph]] = {
    "llama": Graph(yarn=True),
    "qwen2": Graph(yarn=True),
    "qwen3": Graph(qk_norm="head", yarn=True),
    "phi3": Graph(partial_rotation=True),
    "smollm3": Graph(fourth_without_rope=True),
    "gemma": _GEMMA,
    "gemma2": replace(_GEMMA2, attention_softcap=50.0, logits_softcap=30.0, period=2, window=4096, local_scaling=True),
    "gemma3": _GEMMA3,
    "gemma4": replace(
        _GEMMA2, qk_norm="head", v_norm=True, logits_softcap=30.0, period=1, local_base=10000.0, by_layer=True
    ),
    "gemma-embedding": replace(_GEMMA3, logits_softcap=None, both_sides=True),
    "mistral3": Graph(temperature=True, yarn=True, turns=True),
    "granite": Graph(scales=True, yarn=True),
    "olmo2": Graph(qk_norm="width", norms="after", yarn=True, period=4, one_base=True),
    "exaone4": Graph(qk_norm="head", norms="after"),
    "hunyuan-dense": Graph(qk_norm="rotated"),
    "stablelm": Graph(layer_norms=True, partial_rotation=True),
    "lfm2": Graph(qk_norm="head", convolutions=True),
    "qwen35": Graph(qk_norm="head", partial_rotation=True, delta_rules=True),
}
EXAONE4_OF_64: Final = replace(
    GRAPHS["exaone4"], period=4, window=4096, one_base=True, local_scaling=True, full_without_rope=True
)
