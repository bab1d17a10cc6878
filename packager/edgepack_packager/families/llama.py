"""The Llama family: Llama 2 and 3, SmolLM2, TinyLlama and all others that call themselves LlamaForCausalLM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.decoder import Attention, Decoder
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families.fields import FILE, count, flag, only, positive, read_context
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import read_rope

ARCHITECTURES = frozenset({"LlamaForCausalLM"})

# Old checkpoints store the rope frequencies, which follow from config.json.
IGNORED = r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"

_TENSORS: Mapping[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}

_LAYER_MODULES: Mapping[str, str] = {
    "attention.norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.o": "self_attn.o_proj",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Llama's config.json describes; absent optional fields are as in LlamaConfig."""
    if config.get("quantization_config") is not None:
        raise UnsupportedModelError(
            f"{FILE}: quantization_config says that the weights are quantized already.",
            hint="Convert the original, unquantized checkpoint.",
        )
    only(config, "hidden_act", "silu")
    only(config, "rope_interleaved", False)
    hidden, heads = count(config, "hidden_size"), count(config, "num_attention_heads")
    kv_heads = count(config, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise SourceError(f"{FILE}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads}).")
    head_dim = _head_dim(config, hidden, heads)
    attention_bias = flag(config, "attention_bias", default=False)
    return Decoder(
        family="llama",
        architecture="LlamaForCausalLM",
        n_layers=count(config, "num_hidden_layers"),
        hidden_size=hidden,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=count(config, "intermediate_size"),
        n_vocab=count(config, "vocab_size"),
        context=read_context(config, context),
        trained_context=count(config, "max_position_embeddings"),
        norm_eps=positive(config, "rms_norm_eps"),
        pattern=(Attention(read_rope(config, head_dim)),),
        tied=flag(config, "tie_word_embeddings", default=False),
        qkv_bias=attention_bias,
        output_bias=attention_bias,
        mlp_bias=flag(config, "mlp_bias", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Llama checkpoint keeps a canonical tensor."""
    if name in _TENSORS:
        return Source(_TENSORS[name])
    _, layer, module = name.split(".", 2)
    kind = "bias" if module.endswith(".bias") else "weight"
    return Source(f"model.layers.{layer}.{_LAYER_MODULES[module.removesuffix('.bias')]}.{kind}")


def _head_dim(config: Mapping[str, Any], hidden: int, heads: int) -> int:
    if config.get("head_dim") is None and hidden % heads:
        raise SourceError(
            f"{FILE}: without head_dim, hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})."
        )
    head_dim = count(config, "head_dim", default=hidden // heads)
    if head_dim % 2:
        raise SourceError(f"{FILE}: head_dim must be even, because rope rotates pairs; it is {head_dim}.")
    return head_dim
