"""EXAONE 4: norms behind the blocks and none before; of a model with windows, the layers without one do not rotate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.rope import Rope
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"Exaone4ForCausalLM"})
MODEL_TYPES = frozenset({"exaone4"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that an EXAONE 4's config.json describes; absent optional fields are as in Exaone4Config."""
    only(config, "hidden_act", "silu")
    config = {"sliding_window": 4096, "sliding_window_pattern": 4, **config}
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    rope, mlp = read_rope(config, heads["head_dim"], length), Mlp(size=count(config, "intermediate_size"))

    def layer(rope: Rope | None, window: int | None = None) -> Layer:
        attention = Attention(**heads, rope=rope, window=window, qk_norm="head")
        return Layer(mixer=attention, mlp=mlp, norms="after")

    if config["sliding_window"] is None:
        arrangement = read_pattern(config, {FULL: layer(rope)}, lambda index: FULL)
    else:
        kinds = {FULL: layer(None), SLIDING: layer(rope, count(config, "sliding_window"))}
        arrangement = read_pattern(config, kinds, lambda index: SLIDING if (index + 1) % _every(config) else FULL)
    return Decoder(
        **sizes,
        **arrangement,
        family="exaone4",
        architecture="Exaone4ForCausalLM",
        context=length,
        tied=flag(config, "tie_word_embeddings", default=False),
    )


def _every(config: Mapping[str, Any]) -> int:
    """How many layers it is from one without window to the next: a number, or letters, of which "G" ends a turn."""
    pattern = config["sliding_window_pattern"]
    if isinstance(pattern, str) and set(pattern) == {"L", "G"} and pattern.index("G") == len(pattern) - 1:
        return len(pattern)
    return count(config, "sliding_window_pattern")
