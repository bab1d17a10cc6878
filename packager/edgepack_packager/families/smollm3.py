"""The SmolLM3 family: a Llama some of whose layers, every fourth by default, do not rotate and see no positions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp, arranged
from edgepack.errors import SourceError
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import FILE, count, flag, only, read_context
from edgepack_packager.families.layers import FULL, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"SmolLM3ForCausalLM"})
MODEL_TYPES = frozenset({"smollm3"})
IGNORED = llama_like.IGNORED
source = llama_like.source

_ROPE = Spelling(default_theta=2_000_000.0)


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a SmolLM3's config.json describes; absent optional fields are as in SmolLM3Config."""
    only(config, "hidden_act", "silu")
    only(config, "use_sliding_window", False)
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    bias = flag(config, "attention_bias", default=False)
    rope = read_rope(config, heads["head_dim"], length, _ROPE)
    mlp = Mlp(size=count(config, "intermediate_size"), bias=flag(config, "mlp_bias", default=False))
    rotating, silent = (
        Layer(mixer=Attention(**heads, rope=each, qkv_bias=bias, output_bias=bias), mlp=mlp) for each in (rope, None)
    )
    # Without windows, layer_types can but say that all layers are full.
    read_pattern(config, {FULL: rotating}, lambda layer: FULL)
    return Decoder(
        **sizes,
        family="smollm3",
        architecture="SmolLM3ForCausalLM",
        context=length,
        **arranged([rotating if rotates else silent for rotates in _rotating(config, sizes["n_layers"])]),
        tied=flag(config, "tie_word_embeddings", default=True),
    )


def _rotating(config: Mapping[str, Any], n_layers: int) -> list[bool]:
    """Whether each layer rotates: a 1 in ``no_rope_layers`` says, against its name, that it does."""
    stated = config.get("no_rope_layers")
    if stated is None:
        interval = count(config, "no_rope_layer_interval", default=4)
        return [(layer + 1) % interval != 0 for layer in range(n_layers)]
    if not isinstance(stated, list) or len(stated) != n_layers or any(each not in (0, 1) for each in stated):
        raise SourceError(f"{FILE}: no_rope_layers must hold a 0 or a 1 for each of the {n_layers} layers.")
    return [each == 1 for each in stated]
