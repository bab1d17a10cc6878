"""The Phi-3 family: Phi-3-mini, Phi-3.5-mini and Phi-4-mini, which all call themselves Phi3ForCausalLM.

Its layers store q, k and v in one tensor, and gate and up in another. A window, where it is shorter than the context,
is on every layer. With longrope the context decides which factors hold: transformers rotates all positions of a
sequence longer than the original context by the long ones, and by the short ones up to there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.layers import window
from edgepack_packager.families.llama_like import read_heads, read_sizes, stored_name
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, original_context, read_rope

ARCHITECTURES = frozenset({"Phi3ForCausalLM"})
MODEL_TYPES = frozenset({"phi3"})
IGNORED = llama_like.IGNORED

_ROPE = Spelling(kinds=("default", "longrope"), partial=True)

_FUSED: Mapping[str, str] = {
    **dict.fromkeys(("attention.q", "attention.k", "attention.v"), "self_attn.qkv_proj"),
    **dict.fromkeys(("mlp.gate", "mlp.up"), "mlp.gate_up_proj"),
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Phi-3's config.json describes; absent optional fields are as in Phi3Config.

    Without a context, one with longrope is described for its original context.
    """
    only(config, "hidden_act", "silu")
    for name in ("attention_bias", "mlp_bias", "lm_head_bias"):
        only(config, name, False)
    # Phi-4-mini's own code spreads windows and full attention over the layers by these two.
    for name in ("full_attn_mod", "interpolate_factor"):
        only(config, name, 1)
    sizes, heads = read_sizes(config), read_heads(config)
    length = read_context(config, context, default=original_context(config, heads["head_dim"], _ROPE))
    seen = None if config.get("sliding_window") is None else window(count(config, "sliding_window"), length)
    rope = read_rope(config, heads["head_dim"], length, _ROPE)
    layer = Layer(mixer=Attention(**heads, rope=rope, window=seen), mlp=Mlp(size=count(config, "intermediate_size")))
    return Decoder(
        **sizes,
        family="phi3",
        architecture="Phi3ForCausalLM",
        context=length,
        kinds=(layer,),
        tied=flag(config, "tie_word_embeddings", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Phi-3 checkpoint keeps a canonical tensor: q, k, v and gate, up follow each other in one."""
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    first = {"k": attention.q_size, "v": attention.q_size + attention.kv_size, "up": mlp.size}
    return Source(stored_name(name, {**llama_like.MODULES, **_FUSED}), first=first.get(name.rpartition(".")[2], 0))
