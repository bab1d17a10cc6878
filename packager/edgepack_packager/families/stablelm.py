"""StableLM: a Llama with LayerNorms, whose rope turns a part of each head.

The 3B and the 1.6B, and Zephyr. The 12B adds attention and MLP of one norm to the stream, and norms each head by a gain
of its own: neither is built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.errors import UnsupportedModelError
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import FILE, count, flag, only, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"StableLmForCausalLM"})
MODEL_TYPES = frozenset({"stablelm"})
IGNORED = llama_like.IGNORED

_ROPE = Spelling(kinds=("default",), partial=True)
_PART = "partial_rotary_factor"


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a StableLM's config.json describes; absent optional fields are as in StableLmConfig."""
    only(config, "hidden_act", "silu")
    for name in ("use_parallel_residual", "qk_layernorm"):
        only(config, name, False)
    sizes, heads = read_sizes(config, norm_eps="layer_norm_eps"), read_heads({"num_key_value_heads": 32, **config})
    if heads["n_heads"] * heads["head_dim"] != sizes["hidden_size"]:
        raise UnsupportedModelError(
            f"{FILE}: head_dim is {heads['head_dim']}; edgepack builds heads that fill the hidden size."
        )
    length = read_context(config, context)
    section = config.get("rope_parameters")
    if all(each.get(_PART) is None for each in (config, section) if isinstance(each, Mapping)):
        config = {**config, _PART: 0.25}
    attention = Attention(
        **heads,
        rope=read_rope(config, heads["head_dim"], length, _ROPE),
        qkv_bias=flag(config, "use_qkv_bias", default=False),
    )
    return Decoder(
        **sizes,
        family="stablelm",
        architecture="StableLmForCausalLM",
        context=length,
        norm="layer",
        kinds=(Layer(mixer=attention, mlp=Mlp(size=count(config, "intermediate_size"))),),
        tied=flag(config, "tie_word_embeddings", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where the checkpoint keeps a canonical tensor: the last norm's bias has no layer."""
    return Source("model.norm.bias") if name == "norm.bias" else llama_like.source(decoder, name)
