"""LFM2: gated short convolutions, and attention with norms of q and k in a few layers; names of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Layer, Mlp
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families import llama_like
from edgepack_packager.families.fields import FILE, agreed, count, flag, layers, positive, read_context
from edgepack_packager.families.layers import FULL, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

ARCHITECTURES = frozenset({"Lfm2ForCausalLM"})
MODEL_TYPES = frozenset({"lfm2"})
IGNORED = llama_like.IGNORED

CONVOLUTION = "conv"
_ROPE = Spelling(default_theta=1000000.0)
_NORM = "model.embedding_norm.weight"
MODULES: Mapping[str, str] = {
    "attention.norm": "operator_norm",
    "attention.q": "self_attn.q_proj",
    "attention.k": "self_attn.k_proj",
    "attention.v": "self_attn.v_proj",
    "attention.q_norm": "self_attn.q_layernorm",
    "attention.k_norm": "self_attn.k_layernorm",
    "attention.o": "self_attn.out_proj",
    "convolution.norm": "operator_norm",
    "convolution.in": "conv.in_proj",
    "convolution.kernel": "conv.conv",
    "convolution.out": "conv.out_proj",
    "mlp.norm": "ffn_norm",
    "mlp.gate": "feed_forward.w1",
    "mlp.up": "feed_forward.w3",
    "mlp.down": "feed_forward.w2",
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that an LFM2's config.json describes; absent optional fields are as in Lfm2Config."""
    sizes, heads = read_sizes(config, norm_eps="norm_eps"), read_heads(config)
    length, mlp = read_context(config, context), Mlp(size=_width(config))
    rope = read_rope(config, heads["head_dim"], length, _ROPE)
    taps = count(config, "conv_L_cache", default=3, least=2)
    kinds = {
        FULL: Layer(mixer=Attention(**heads, rope=rope, qk_norm="head"), mlp=mlp),
        CONVOLUTION: Layer(mixer=Convolution(length=taps, bias=flag(config, "conv_bias", default=False)), mlp=mlp),
    }
    attend = _attending(config)
    arrangement = read_pattern(config, kinds, lambda index: FULL if index in attend else CONVOLUTION)
    if kinds[FULL] not in arrangement["kinds"]:
        raise UnsupportedModelError(f"{FILE}: no layer is an attention, which edgepack does not build.")
    return Decoder(
        **sizes,
        **arrangement,
        family="lfm2",
        architecture="Lfm2ForCausalLM",
        context=length,
        tied=_tied(config),
    )


def source(decoder: Decoder, name: str, modules: Mapping[str, str] = MODULES) -> Source:
    """Say where the checkpoint keeps a canonical tensor; ``modules`` as in ``llama_like.stored_name``."""
    if name == "norm":
        return Source(_NORM)
    kernel = name.endswith("convolution.kernel")
    taps = decoder.convolving[int(name.split(".")[1])].length if kernel else 0
    return Source(llama_like.stored_name(name, modules), taps=taps)


def _width(config: Mapping[str, Any]) -> int:
    """Return the size of the MLP: two thirds of what is stated, times a factor, in whole blocks, unless it is final."""
    names = ("block_ff_dim", "intermediate_size")
    size = agreed({name: count(config, name) for name in names if config.get(name) is not None})
    if size is None:
        size = count(config, names[0])
    if not flag(config, "block_auto_adjust_ff_dim", default=True):
        return size
    block = count(config, "block_multiple_of", default=256)
    scaled = int(positive(config, "block_ffn_dim_multiplier", default=1.0) * int(2 * size / 3))
    return -(-scaled // block) * block


def _attending(config: Mapping[str, Any]) -> list[int]:
    """Return the layers with an attention, where there is no ``layer_types``: those listed, else all."""
    count_of_layers, listed = layers(config), config.get("full_attn_idxs")
    if listed is None:
        return list(range(count_of_layers))
    if not isinstance(listed, list) or not all(type(each) is int and 0 <= each < count_of_layers for each in listed):
        raise SourceError(f"{FILE}: full_attn_idxs must list layers from 0 to {count_of_layers - 1}, not {listed!r}.")
    return listed


def _tied(config: Mapping[str, Any]) -> bool:
    names = ("tie_word_embeddings", "tie_embedding")
    stated = agreed({name: flag(config, name, default=True) for name in names if config.get(name) is not None})
    return True if stated is None else stated
