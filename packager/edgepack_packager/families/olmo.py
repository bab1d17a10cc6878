"""OLMo 2 and 3: norms behind the blocks and none before, and norms of q and k over all heads.

In OLMo 3 three layers have a window to one without, and the rope is stretched on those without alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, is_a, only, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"Olmo2ForCausalLM", "Olmo3ForCausalLM"})
MODEL_TYPES = frozenset({"olmo2", "olmo3"})
IGNORED = llama_like.IGNORED
source = llama_like.source

_FAR = Spelling(parameters=f"rope_parameters.{FULL}", default_theta=500000.0)
_NEAR = Spelling(scaling=None, parameters=f"rope_parameters.{SLIDING}", default_theta=500000.0)


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that an OLMo's config.json describes; absent optional fields are as in its config class."""
    only(config, "hidden_act", "silu")
    third = is_a(config, "Olmo3ForCausalLM", "olmo3")
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    mlp = Mlp(size=count(config, "intermediate_size"))

    def layer(spelling: Spelling, window: int | None = None) -> Layer:
        rope = read_rope(config, heads["head_dim"], length, spelling)
        attention = Attention(**heads, rope=rope, window=window, qk_norm="width", qkv_bias=bias, output_bias=bias)
        return Layer(mixer=attention, mlp=mlp, norms="after")

    if third:
        kinds = {FULL: layer(_FAR), SLIDING: layer(_NEAR, count(config, "sliding_window", default=4096))}
        arrangement = read_pattern(config, kinds, lambda index: SLIDING if (index + 1) % 4 else FULL)
    else:
        arrangement = read_pattern(config, {FULL: layer(Spelling())}, lambda index: FULL)
    return Decoder(
        **sizes,
        **arrangement,
        family="olmo",
        architecture="Olmo3ForCausalLM" if third else "Olmo2ForCausalLM",
        context=length,
        tied=flag(config, "tie_word_embeddings", default=False),
    )
