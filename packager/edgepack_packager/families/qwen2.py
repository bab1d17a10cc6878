"""The Qwen2 family: Qwen2 and Qwen2.5, which have a bias on q, k and v and nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edgepack.bundle.decoder import Arrangement, Attention, Decoder, Layer, Mlp
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern, window
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"Qwen2ForCausalLM"})
MODEL_TYPES = frozenset({"qwen2"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Qwen2's config.json describes; absent optional fields are as in Qwen2Config."""
    only(config, "hidden_act", "silu")
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    return Decoder(
        **sizes,
        family="qwen2",
        architecture="Qwen2ForCausalLM",
        context=length,
        **windows_above(config, partial(Attention, **heads, qkv_bias=True), heads["head_dim"], length),
        tied=flag(config, "tie_word_embeddings", default=False),
    )


def windows_above(
    config: Mapping[str, Any], attention: Callable[..., Attention], head_dim: int, context: int
) -> Arrangement:
    """Return the layers of a Qwen: with ``use_sliding_window``, those from ``max_window_layers`` on have a window.

    ``attention`` makes one of a rope and a window.
    """
    mlp = Mlp(size=count(config, "intermediate_size"))
    rope = read_rope(config, head_dim, context)
    full = Layer(mixer=attention(rope=rope), mlp=mlp)
    windowed = flag(config, "use_sliding_window", default=False) and config.get("sliding_window") is not None
    if not windowed:
        return read_pattern(config, {FULL: full}, lambda layer: FULL)
    size = window(count(config, "sliding_window"), context)
    first = count(config, "max_window_layers", default=28, least=0)
    sliding = Layer(mixer=attention(rope=rope, window=size), mlp=mlp)
    kinds = {FULL: full, SLIDING: sliding}
    return read_pattern(config, kinds, lambda layer: SLIDING if layer >= first else FULL)
