"""Helium: Llama's layers with a rope that turns neighbours of a head, which are read apart; no bias on the output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"HeliumForCausalLM"})
MODEL_TYPES = frozenset({"helium"})
IGNORED = llama_like.IGNORED
source = llama_like.source_in_pairs

_ROPE = Spelling(default_theta=100000.0)


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Helium's config.json describes; absent optional fields are as in HeliumConfig."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=128), read_context(config, context)
    layer = Layer(
        mixer=Attention(
            **heads,
            rope=read_rope(config, heads["head_dim"], length, _ROPE),
            qkv_bias=flag(config, "attention_bias", default=False),
        ),
        mlp=Mlp(size=count(config, "intermediate_size"), bias=flag(config, "mlp_bias", default=False)),
    )
    return Decoder(
        **sizes,
        family="helium",
        architecture="HeliumForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=False),
    )
