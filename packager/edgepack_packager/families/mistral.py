"""The Mistral family: Mistral 7B and Nemo, Ministral 8B, and the Mistral 3 and Ministral 3 that also see, as text.

Its layers are Llama's. A window is on every layer, or on those that ``layer_types`` names. Ministral 3 stretches its
rope by YaRN, and its queries grow with their position.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp, Temperature
from edgepack_packager.families import llama_like, nested
from edgepack_packager.families.fields import count, flag, is_a, only, positive, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern, window
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

_WITH_VISION = "Mistral3ForConditionalGeneration"
_TEXT = ("mistral", "ministral", "ministral3")

ARCHITECTURES = frozenset({"MistralForCausalLM", "MinistralForCausalLM", "Ministral3ForCausalLM", _WITH_VISION})
MODEL_TYPES = frozenset({"mistral3", *_TEXT})
IGNORED = f"{nested.IGNORED}|{llama_like.IGNORED}"

# What the configuration classes fill in. A null is no absent field: a sliding_window of null is none.
_DEFAULTS: Mapping[str, Any] = {"sliding_window": 4096, "num_key_value_heads": 8}
_DEFAULTS_3: Mapping[str, Any] = {
    "num_key_value_heads": 8,
    "head_dim": 128,
    "sliding_window": None,
    "max_position_embeddings": 262144,
}
_ROPE_3: Mapping[str, Any] = {
    "rope_type": "yarn",
    "rope_theta": 1000000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}
_SPELLED_3 = Spelling(others=frozenset({"llama_4_scaling_beta", "max_position_embeddings"}))


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Mistral's config.json describes; absent optional fields are as in its config class."""
    text = nested.text_part(config, _WITH_VISION, _TEXT)
    third = is_a(text, "Ministral3ForCausalLM", "ministral3")
    text = {**(_DEFAULTS_3 if third else _DEFAULTS), **text}
    if third and text.get("rope_parameters") is None:
        text["rope_parameters"] = _ROPE_3
    only(text, "hidden_act", "silu")
    sizes, heads, length = read_sizes(text), read_heads(text), read_context(text, context)
    rope = read_rope(text, heads["head_dim"], length, _SPELLED_3 if third else Spelling())
    layer = partial(
        _layer,
        partial(Attention, **heads, rope=rope, temperature=_temperature(text) if third else None),
        Mlp(size=count(text, "intermediate_size")),
    )
    sliding = None if text["sliding_window"] is None else window(count(text, "sliding_window"), length)
    if text.get("layer_types") is None:
        arrangement = read_pattern(text, {FULL: layer(sliding)}, lambda _: FULL)
    else:
        arrangement = read_pattern(text, {FULL: layer(None), SLIDING: layer(sliding)}, lambda _: FULL)
    return Decoder(
        **sizes,
        **arrangement,
        family="mistral",
        architecture="Ministral3ForCausalLM" if third else "MistralForCausalLM",
        context=length,
        tied=flag(text, "tie_word_embeddings", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a checkpoint keeps a canonical tensor, in the three spellings of its name."""
    return nested.spelled(llama_like.source(decoder, name))


def _layer(attention: Any, mlp: Mlp, sliding: int | None) -> Layer:
    return Layer(mixer=attention(window=sliding), mlp=mlp)


def _temperature(text: Mapping[str, Any]) -> Temperature | None:
    rope = text["rope_parameters"]
    if rope.get("llama_4_scaling_beta") is None:
        return None
    return Temperature(positive(rope, "llama_4_scaling_beta"), count(rope, "original_max_position_embeddings"))
