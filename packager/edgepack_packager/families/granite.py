"""The Granite family, versions 3 and 4: Llama's layers with four multipliers.

Granite 4 has a class of its own for models with experts and with Mamba; here are those with neither, whose MLP is the
one that experts would share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import FILE, count, flag, is_a, only, positive, read_context
from edgepack_packager.families.llama_like import read_heads, read_sizes, stored_name
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import read_rope

_HYBRID = "GraniteMoeHybridForCausalLM"

ARCHITECTURES = frozenset({"GraniteForCausalLM", _HYBRID})
MODEL_TYPES = frozenset({"granite", "granitemoehybrid"})
IGNORED = llama_like.IGNORED

_SHARED: Mapping[str, str] = {
    "mlp.gate": "shared_mlp.input_linear",
    "mlp.up": "shared_mlp.input_linear",
    "mlp.down": "shared_mlp.output_linear",
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Granite's config.json describes; absent optional fields are as in GraniteConfig."""
    only(config, "hidden_act", "silu")
    hybrid = is_a(config, _HYBRID, "granitemoehybrid")
    sizes, heads, length = read_sizes(config), read_heads(config), read_context(config, context)
    if hybrid:
        _refuse_others(config)
    bias = flag(config, "attention_bias", default=False)
    rotates = not hybrid or config.get("position_embedding_type") == "rope"
    attention = Attention(
        **heads,
        rope=read_rope(config, heads["head_dim"], length) if rotates else None,
        scale=positive(config, "attention_multiplier", default=1.0),
        qkv_bias=bias,
        output_bias=bias,
    )
    size = count(config, "shared_intermediate_size" if hybrid else "intermediate_size")
    mlp = Mlp(size=size, bias=not hybrid and flag(config, "mlp_bias", default=False))
    scale = positive(config, "residual_multiplier", default=1.0)
    return Decoder(
        **sizes,
        family="granite",
        architecture=_HYBRID if hybrid else "GraniteForCausalLM",
        context=length,
        kinds=(Layer(mixer=attention, mlp=mlp, residual_scale=scale),),
        tied=flag(config, "tie_word_embeddings", default=False),
        embedding_scale=positive(config, "embedding_multiplier", default=1.0),
        logits_scale=1 / positive(config, "logits_scaling", default=1.0),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Granite checkpoint keeps a canonical tensor."""
    if decoder.architecture != _HYBRID:
        return llama_like.source(decoder, name)
    first = decoder.layer(0).mlp.size if name.endswith("mlp.up") else 0
    return Source(stored_name(name, {**llama_like.MODULES, **_SHARED}), first=first)


def _refuse_others(config: Mapping[str, Any]) -> None:
    kinds = config.get("layer_types") or config.get("layers_block_type") or ["linear_attention"]
    if not isinstance(kinds, list):
        raise SourceError(f"{FILE}: layer_types must name the kind of each layer, not {kinds!r}.")
    if others := sorted({str(kind) for kind in kinds} - {"attention", "full_attention"}):
        raise UnsupportedModelError(f"{FILE}: layer_types has {others[0]!r}; edgepack builds Granite 4 without Mamba.")
    only({"num_local_experts": config.get("num_local_experts", 8)}, "num_local_experts", 0)
