"""ERNIE 4.5 and Helium: Llama's layers with a rope that turns neighbours of a head, which are read apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

# The first files of ERNIE 4.5 on the hub name the class that came with them.
_ERNIE = frozenset({"Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"})

ARCHITECTURES = _ERNIE | {"HeliumForCausalLM"}
MODEL_TYPES = frozenset({"ernie4_5", "helium"})
IGNORED = llama_like.IGNORED


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a config.json describes; absent optional fields are as in its config class."""
    only(config, "hidden_act", "silu")
    ernie = config.get("model_type") == "ernie4_5" or not _ERNIE.isdisjoint(config.get("architectures") or ())
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=128), read_context(config, context)
    rope = read_rope(config, heads["head_dim"], length, Spelling(default_theta=500000.0 if ernie else 100000.0))
    qkv = flag(config, "use_bias" if ernie else "attention_bias", default=False)
    layer = Layer(
        mixer=Attention(**heads, rope=rope, qkv_bias=qkv, output_bias=ernie and qkv),
        mlp=Mlp(
            size=count(config, "intermediate_size"),
            bias=flag(config, "use_bias" if ernie else "mlp_bias", default=False),
        ),
    )
    return Decoder(
        **sizes,
        family="ernie4_5" if ernie else "helium",
        architecture="Ernie4_5ForCausalLM" if ernie else "HeliumForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=ernie),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a checkpoint keeps a canonical tensor, and that heads of q and k have neighbours that turn."""
    turned = name.removesuffix(".bias").endswith(("attention.q", "attention.k"))
    return replace(llama_like.source(decoder, name), pairs=decoder.attention(0).head_dim if turned else 0)
