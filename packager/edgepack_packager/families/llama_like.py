"""What most decoder-only models on the hub share with Llama: the names of config.json's sizes and of the tensors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypedDict

from edgepack.bundle.decoder import Decoder
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families import unbuilt
from edgepack_packager.families.fields import FILE, count, layers, positive
from edgepack_packager.families.mapping import Source

# Tables that follow from config.json, as old checkpoints store them; a mask; the scales of an 8-bit KV cache, which no
# weight is multiplied by; and a head that guesses a reward beside the text's own.
IGNORED = (
    r"model\.(layers\.\d+\.self_attn\.)?rotary_emb(_\w+)?\.\w+"
    r"|model\.layers\.\d+\.self_attn\.(masked_bias|((attn|[kv]_proj)\.)?([kqv]|kv|prob)_(output_)?scale)"
    r"|model\.layers\.\d+\.self_attn\.[kv]_proj\.output_scale"
    r"|(model\.)?position_ids|v_head\..+"
)

TENSORS: Mapping[str, str] = {
    "embedding": "model.embed_tokens.weight",
    "norm": "model.norm.weight",
    "head": "lm_head.weight",
}

MODULES: Mapping[str, str] = {
    "attention.norm": "input_layernorm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_norm",
    "attention.k_norm": "self_attn.k_norm",
    "attention.o": "self_attn.o_proj",
    "attention.post_norm": "post_attention_layernorm",
    "mlp.norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
    "mlp.post_norm": "post_feedforward_layernorm",
}
"""What a layer's modules are called. One norm is either the one behind the attention or, more often, the MLP's."""


class Sizes(TypedDict):
    """The facts of a decoder that every family spells in the same way."""

    n_layers: int
    hidden_size: int
    n_vocab: int
    trained_context: int
    norm_eps: float


class Heads(TypedDict):
    """The sizes of an attention."""

    n_heads: int
    n_kv_heads: int
    head_dim: int


def read_sizes(config: Mapping[str, Any], norm_eps: str = "rms_norm_eps") -> Sizes:
    """Return the sizes that a config.json states, ``norm_eps`` in the field of that name.

    Raises ``UnsupportedModelError`` for a field that makes the model more than a dense decoder of text, ``SourceError``
    for a wrong field.
    """
    if more := unbuilt.deciding_field(config):
        raise UnsupportedModelError(f"{FILE} has {more}, which edgepack does not build.")
    return Sizes(
        n_layers=layers(config),
        hidden_size=count(config, "hidden_size"),
        n_vocab=count(config, "vocab_size"),
        trained_context=count(config, "max_position_embeddings"),
        norm_eps=positive(config, norm_eps),
    )


def read_heads(config: Mapping[str, Any], head_dim: int | None = None) -> Heads:
    """Return the sizes of the heads; a config.json may leave out how many are of keys and values, and the dimension.

    ``head_dim`` is what a family's configuration has for an absent one; None divides the hidden size by the heads.
    Raises ``SourceError`` for a wrong field.
    """
    heads = count(config, "num_attention_heads")
    kv_heads = count(config, "num_key_value_heads", default=heads)
    if heads % kv_heads:
        raise SourceError(f"{FILE}: num_attention_heads ({heads}) is no multiple of num_key_value_heads ({kv_heads}).")
    return Heads(n_heads=heads, n_kv_heads=kv_heads, head_dim=_head_dim(config, heads, head_dim))


def source(decoder: Decoder, name: str) -> Source:
    """Say where a checkpoint with Llama's names keeps a canonical tensor."""
    return Source(stored_name(name, MODULES))


def source_in_pairs(decoder: Decoder, name: str) -> Source:
    """Say the same of a checkpoint whose rope turns neighbours of a head: in it partners stand beside each other."""
    turned = name.removesuffix(".bias").endswith(("attention.q", "attention.k"))
    return replace(source(decoder, name), pairs=decoder.attentions[0].head_dim if turned else 0)


def stored_name(name: str, modules: Mapping[str, str]) -> str:
    """Return the checkpoint's name of a canonical tensor; ``modules`` names what a layer has."""
    if name in TENSORS:
        return TENSORS[name]
    _, layer, module = name.split(".", 2)
    kind = "bias" if module.endswith(".bias") else "weight"
    return f"model.layers.{layer}.{modules[module.removesuffix('.bias')]}.{kind}"


def _head_dim(config: Mapping[str, Any], heads: int, default: int | None) -> int:
    hidden = count(config, "hidden_size")
    if config.get("head_dim") is None and default is None and hidden % heads:
        raise SourceError(
            f"{FILE}: without head_dim, hidden_size ({hidden}) must be a multiple of num_attention_heads ({heads})."
        )
    head_dim = count(config, "head_dim", default=default or hidden // heads)
    if head_dim % 2:
        raise SourceError(f"{FILE}: head_dim must be even, because rope rotates pairs; it is {head_dim}.")
    return head_dim
