"""The Qwen2 family: Qwen2 and Qwen2.5, which have a bias on q, k and v and nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern, window
from edgepack_packager.families.llama_like import read_sizes
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"Qwen2ForCausalLM"})
MODEL_TYPES = frozenset({"qwen2"})
IGNORED = llama_like.IGNORED
source = llama_like.source


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Qwen2's config.json describes; absent optional fields are as in Qwen2Config."""
    only(config, "hidden_act", "silu")
    sizes, length = read_sizes(config), read_context(config, context)
    return Decoder(
        **sizes,
        family="qwen2",
        architecture="Qwen2ForCausalLM",
        context=length,
        pattern=windows_above(config, sizes["head_dim"], length),
        tied=flag(config, "tie_word_embeddings", default=False),
        qkv_bias=True,
    )


def windows_above(config: Mapping[str, Any], head_dim: int, context: int) -> tuple[Attention, ...]:
    """Return the pattern of a Qwen: with ``use_sliding_window``, layers from ``max_window_layers`` on have a window."""
    rope = read_rope(config, head_dim, context)
    windowed = flag(config, "use_sliding_window", default=False) and config.get("sliding_window") is not None
    if not windowed:
        return read_pattern(config, {FULL: Attention(rope)}, lambda layer: FULL)
    size = window(count(config, "sliding_window"), context)
    first = count(config, "max_window_layers", default=28, least=0)
    kinds = {FULL: Attention(rope), SLIDING: Attention(rope, size)}
    return read_pattern(config, kinds, lambda layer: SLIDING if layer >= first else FULL)
