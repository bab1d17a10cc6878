"""The first Gemma: two norms a layer, gelu, scaled embeddings, and norms that store their gain less one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import gemma_like, llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"GemmaForCausalLM"})
MODEL_TYPES = frozenset({"gemma"})
IGNORED = llama_like.IGNORED


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Gemma's config.json describes; absent optional fields are as in GemmaConfig.

    An activation of "gelu" is the tanh approximation too, as transformers reads it: the first files say so.
    """
    if config.get("hidden_act") == "gelu":
        config = {**config, "hidden_act": "gelu_pytorch_tanh"}
    gemma_like.refuse_others(config)
    only(config, "hidden_act", "gelu_pytorch_tanh")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=256), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    rope = read_rope(config, heads["head_dim"], length)
    layer = Layer(
        mixer=Attention(**heads, rope=rope, qkv_bias=bias, output_bias=bias),
        mlp=Mlp(size=count(config, "intermediate_size"), activation="gelu_tanh"),
    )
    return Decoder(
        **sizes,
        family="gemma",
        architecture="GemmaForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=True),
        embedding_scale=gemma_like.embedding_scale(config, sizes["hidden_size"]),
        wide=True,
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Gemma checkpoint keeps a canonical tensor, and that a norm's gain is one more than what it stores."""
    place = llama_like.source(decoder, name)
    return Source(place.tensor, plus=1.0 if name.endswith("norm") else 0.0)
