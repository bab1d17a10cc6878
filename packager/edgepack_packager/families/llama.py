"""The Llama family: Llama 2 and 3, SmolLM2, TinyLlama and all others that call themselves LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"LlamaForCausalLM"})
MODEL_TYPES = frozenset({"llama"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Llama's config.json describes; absent optional fields are as in LlamaConfig."""
    only(config, "hidden_act", "silu")
    only(config, "rope_interleaved", False)
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    rope = read_rope(config, heads["head_dim"], length)
    layer = Layer(
        mixer=Attention(**heads, rope=rope, qkv_bias=bias, output_bias=bias),
        mlp=Mlp(size=count(config, "intermediate_size"), bias=flag(config, "mlp_bias", default=False)),
    )
    return Decoder(
        **sizes,
        family="llama",
        architecture="LlamaForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=False),
    )
