"""The Gemma 3 family, and the text part of those that also see: local layers with a window and a rope of their own.

A Gemma3ForConditionalGeneration keeps its text part under ``text_config``; its vision tower is not packed.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from msgspec.structs import replace

from edgepack.bundle.decoder import Arrangement, Decoder
from edgepack.errors import UnsupportedModelError
from edgepack_packager.families import gemma_like, llama_like, nested
from edgepack_packager.families.fields import FILE, agreed, count, flag, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern
from edgepack_packager.families.llama_like import Heads, read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

_WITH_VISION = "Gemma3ForConditionalGeneration"

ARCHITECTURES = frozenset({"Gemma3ForCausalLM", gemma_like.BODY, _WITH_VISION})
MODEL_TYPES = frozenset({"gemma3", "gemma3_text"})
IGNORED = f"{nested.IGNORED}|{llama_like.IGNORED}"

_GLOBAL = Spelling(parameters=f"rope_parameters.{FULL}", default_theta=1_000_000.0)
_LOCAL = Spelling(theta="rope_local_base_freq", scaling=None, parameters=f"rope_parameters.{SLIDING}")

# What Gemma3TextConfig fills in; the multimodal files leave most of it out.
_DEFAULTS: Mapping[str, Any] = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Gemma 3's config.json describes; absent fields are as in Gemma3TextConfig."""
    config = {**_DEFAULTS, **nested.text_part(config, _WITH_VISION, ("gemma3_text",))}
    gemma_like.refuse_others(config)
    # transformers reads the one and ignores it, and ignores the other beside a vision tower.
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name) is not None:
            raise UnsupportedModelError(f"{FILE}: {name} is {config[name]!r}; edgepack builds Gemma 3 without it.")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=256), read_context(config, context)
    return Decoder(
        **sizes,
        family="gemma3",
        architecture="Gemma3ForCausalLM",
        context=length,
        **_pattern(config, heads, length),
        tied=flag(config, "tie_word_embeddings", default=True),
        embedding_scale=gemma_like.embedding_scale(config, sizes["hidden_size"]),
        wide=True,
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Gemma 3 checkpoint keeps a canonical tensor, in the three spellings of its name."""
    return nested.spelled(gemma_like.source(decoder, name))


def _pattern(config: Mapping[str, Any], heads: Heads, context: int) -> Arrangement:
    """Return local and global layers; every ``sliding_window_pattern``-th is global, which is every sixth."""
    far, near = (read_rope(config, heads["head_dim"], context, spelling) for spelling in (_GLOBAL, _LOCAL))
    layer = partial(gemma_like.layer, config, heads, softcap=None, qk_norm="head")
    both = flag(config, "use_bidirectional_attention", default=False)
    # transformers halves the window where it is one to both sides, the own position counted to each.
    window = count(config, "sliding_window") // 2 + 1 if both else count(config, "sliding_window")
    kinds = {FULL: layer(far), SLIDING: layer(near, window)}
    if both:
        kinds = {name: replace(kind, mixer=replace(kind.mixer, bidirectional=True)) for name, kind in kinds.items()}
    # transformers reads no flat rope_parameters here; nor are they a rope of some layers.
    unknown = sorted((config.get("rope_parameters") or {}).keys() - kinds.keys())
    if unknown:
        raise UnsupportedModelError(f"{FILE}: rope_parameters.{unknown[0]} has no meaning beside {FULL} and {SLIDING}.")
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    every = agreed({name: count(config, name) for name in names if config.get(name) is not None}) or 6
    return read_pattern(config, kinds, lambda layer: SLIDING if (layer + 1) % every else FULL)
