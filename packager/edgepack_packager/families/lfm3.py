"""LFM3: LFM2's convolutions beside two types of attention, with a window or without, and a gate on each head.

A norm stands before and behind each block. Layers without window turn the first half of the pairs of a head.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from edgepack.bundle.decoder import Attention, Convolution, Decoder, Layer, Mlp
from edgepack.errors import UnsupportedModelError
from edgepack_packager.families import lfm2, llama_like
from edgepack_packager.families.fields import FILE, count, flag, only, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_pattern
from edgepack_packager.families.lfm2 import CONVOLUTION
from edgepack_packager.families.llama_like import read_heads, read_sizes
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import read_ropes

ARCHITECTURES = frozenset({"Lfm3ForCausalLM"})
MODEL_TYPES = frozenset({"lfm3"})
IGNORED = llama_like.IGNORED

_MODULES: Mapping[str, str] = {
    **lfm2.MODULES,
    **{name: llama_like.MODULES[name] for name in ("attention.o", "attention.q_norm", "attention.k_norm")},
    "attention.gate": "self_attn.g_proj",
    "attention.post_norm": "post_operator_norm",
    "convolution.post_norm": "post_operator_norm",
    "mlp.post_norm": "post_ffn_norm",
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that an LFM3's config.json describes; absent optional fields are as in Lfm3Config."""
    only(config, "attention_bias", False)
    sizes, heads = read_sizes(config, norm_eps="norm_eps"), read_heads(config, head_dim=128)
    length, mlp = read_context(config, context), Mlp(size=count(config, "intermediate_size"))
    gated: Literal["heads", False] = "heads" if flag(config, "use_attention_gate", default=True) else False
    norms: Literal["both", "before"] = "both" if flag(config, "use_sandwich_norm", default=True) else "before"
    taps = count(config, "conv_L_cache", default=7, least=2)
    mixers: dict[str, Attention | Convolution] = {
        CONVOLUTION: Convolution(length=taps, bias=flag(config, "conv_bias", default=False))
    }
    windows = {FULL: None, SLIDING: count(config, "sliding_window", default=256)}
    for name, rope in read_ropes(config, dict.fromkeys(windows, heads["head_dim"]), length, part=0.5).items():
        mixers[name] = Attention(**heads, rope=rope, window=windows[name], qk_norm="head", gated=gated)
    kinds = {name: Layer(mixer=mixer, mlp=mlp, norms=norms) for name, mixer in mixers.items()}
    arrangement = read_pattern(config, kinds, _usual)
    if all(isinstance(kind.mixer, Convolution) for kind in arrangement["kinds"]):
        raise UnsupportedModelError(f"{FILE}: no layer is an attention, which edgepack does not build.")
    return Decoder(
        **sizes,
        **arrangement,
        family="lfm3",
        architecture="Lfm3ForCausalLM",
        context=length,
        tied=flag(config, "tie_word_embeddings", default=True),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where the checkpoint keeps a canonical tensor."""
    return lfm2.source(decoder, name, _MODULES)


def _usual(index: int) -> str:
    return FULL if index % 4 == 2 else SLIDING if index % 4 == 0 and index else CONVOLUTION
