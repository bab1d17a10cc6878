"""HunYuan, dense: norms of q and k after their rotation, and a rope whose base a fixed factor stretches."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.rope import Rope
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import agreed, count, flag, only, positive, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes, stored_name
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"HunYuanDenseV1ForCausalLM"})
MODEL_TYPES = frozenset({"hunyuan_v1_dense"})
IGNORED = llama_like.IGNORED

_NORMS: Mapping[str, str] = {
    "attention.q_norm": "self_attn.query_layernorm",
    "attention.k_norm": "self_attn.key_layernorm",
}
# Its section names the fields of YaRN too, and its class reads none of them.
_ROPE = Spelling(others=frozenset({"alpha", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"}))


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a config.json describes; absent optional fields are as in HunYuanDenseV1Config."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    rope = _stretched(config, read_rope(config, heads["head_dim"], length, _ROPE))
    layer = Layer(
        mixer=Attention(**heads, rope=rope, qk_norm="rotated", qkv_bias=bias, output_bias=bias),
        mlp=Mlp(size=count(config, "intermediate_size")),
    )
    return Decoder(
        **sizes,
        family="hunyuan",
        architecture="HunYuanDenseV1ForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a HunYuan checkpoint keeps a canonical tensor."""
    return Source(stored_name(name, {**llama_like.MODULES, **_NORMS}))


def _stretched(config: Mapping[str, Any], rope: Rope) -> Rope:
    """Return the rope with its base times alpha ** (dim / (dim - 2)), where a section of a dynamic one has an alpha."""
    sections = {name: config.get(name) or {} for name in ("rope_scaling", "rope_parameters")}
    stated = {
        f"{name}.alpha": positive({f"{name}.alpha": section["alpha"]}, f"{name}.alpha")
        for name, section in sections.items()
        if section.get("alpha") and "dynamic" in (section.get("rope_type"), section.get("type"))
    }
    alpha = agreed(stated)
    return rope if alpha is None else Rope(rope.theta * alpha ** (rope.dim / (rope.dim - 2)), rope.dim)
