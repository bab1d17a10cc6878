"""Seed-OSS: Llama's layers with a bias on q, k and v, and a switch of its own for one on the attention's output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"SeedOssForCausalLM"})
MODEL_TYPES = frozenset({"seed_oss"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Seed-OSS' config.json describes; absent optional fields are as in SeedOssConfig."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=128), read_context(config, context)
    layer = Layer(
        mixer=Attention(
            **heads,
            rope=read_rope(config, heads["head_dim"], length),
            qkv_bias=flag(config, "attention_bias", default=True),
            output_bias=flag(config, "attention_out_bias", default=False),
        ),
        mlp=Mlp(size=count(config, "intermediate_size"), bias=flag(config, "mlp_bias", default=False)),
    )
    return Decoder(
        **sizes,
        family="seed_oss",
        architecture="SeedOssForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=False),
    )
