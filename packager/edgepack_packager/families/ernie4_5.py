"""ERNIE 4.5, dense: Llama's layers with a rope that turns neighbours of a head, which are read apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import Spelling, read_rope

# The first files on the hub name the class that came with them.
ARCHITECTURES = frozenset({"Ernie4_5ForCausalLM", "Ernie4_5_ForCausalLM"})
MODEL_TYPES = frozenset({"ernie4_5"})
IGNORED = llama_like.IGNORED
source = llama_like.source_in_pairs

_ROPE = Spelling(default_theta=500000.0)


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that an ERNIE 4.5's config.json describes; absent optional fields are as in Ernie4_5Config."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config, head_dim=128), read_context(config, context)
    bias = flag(config, "use_bias", default=False)
    rope = read_rope(config, heads["head_dim"], length, _ROPE)
    layer = Layer(
        mixer=Attention(**heads, rope=rope, qkv_bias=bias, output_bias=bias),
        mlp=Mlp(size=count(config, "intermediate_size"), bias=bias),
    )
    return Decoder(
        **sizes,
        family="ernie4_5",
        architecture="Ernie4_5ForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=True),
    )
