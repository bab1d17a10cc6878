"""The Qwen3 family: no bias, but a norm on each head of q and k; the head dimension is stated, never derived."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.qwen2 import windows_above

ARCHITECTURES = frozenset({"Qwen3ForCausalLM", "Qwen3Model"})
MODEL_TYPES = frozenset({"qwen3"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Qwen3's config.json describes; absent optional fields are as in Qwen3Config."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=128), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    attention = partial(Attention, **heads, qk_norm="head", qkv_bias=bias, output_bias=bias)
    return Decoder(
        **sizes,
        family="qwen3",
        architecture="Qwen3ForCausalLM",
        context=length,
        **windows_above(config, attention, heads["head_dim"], length),
        tied=flag(config, "tie_word_embeddings", default=False),
    )
