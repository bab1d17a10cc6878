"""Qwen3.5, as text: three layers of the gated delta rule to one of attention, whose output is gated.

Norms store their gain less one, but for that behind the delta rule. What guesses more tokens (MTP) is not read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder, Delta, Layer, Mlp
from edgepack_packager.families import llama_like, nested
from edgepack_packager.families.fields import count, flag, only, read_context
from edgepack_packager.families.layers import FULL, read_pattern
from edgepack_packager.families.llama_like import read_heads, read_sizes, stored_name
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import Spelling, read_rope

_WITH_VISION = "Qwen3_5ForConditionalGeneration"
_TEXT = ("qwen3_5_text",)

ARCHITECTURES = frozenset({"Qwen3_5ForCausalLM", _WITH_VISION})
MODEL_TYPES = frozenset({"qwen3_5", *_TEXT})
IGNORED = rf"{nested.IGNORED}|{llama_like.IGNORED}|(model\.)?visual\..+|mtp\..+"

LINEAR = "linear_attention"
# The sections say which positions of an image turn a pair; in a text all are the same.
_ROPE = Spelling(partial=True, others=frozenset({"mrope_section", "mrope_interleaved"}))
_DELTA = "linear_attn"
_MODULES: Mapping[str, str] = {
    **llama_like.MODULES,
    "attention.gate": "self_attn.q_proj",
    "delta.norm": "input_layernorm",
    "delta.qkv": f"{_DELTA}.in_proj_qkv",
    "delta.z": f"{_DELTA}.in_proj_z",
    "delta.a": f"{_DELTA}.in_proj_a",
    "delta.b": f"{_DELTA}.in_proj_b",
    "delta.kernel": f"{_DELTA}.conv1d",
    "delta.head_norm": f"{_DELTA}.norm",
    "delta.out": f"{_DELTA}.out_proj",
}
_VECTORS: Mapping[str, str] = {"delta.step": "dt_bias", "delta.decay": "A_log"}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Qwen3.5's config.json describes; absent optional fields are as in Qwen3_5TextConfig."""
    text = nested.text_part(config, _WITH_VISION, _TEXT)
    only(text, "hidden_act", "silu")
    only(text, "attention_bias", False)
    if (text.get("rope_parameters") or {}).get("partial_rotary_factor") is None:
        text = {"partial_rotary_factor": 0.25, **text}
    sizes, heads, length = read_sizes(text), read_heads(text, head_dim=256), read_context(text, context)
    rope, mlp = read_rope(text, heads["head_dim"], length, _ROPE), Mlp(size=count(text, "intermediate_size"))
    attention = Attention(**heads, rope=rope, qk_norm="head", gated=True)
    delta = Delta(
        n_key_heads=count(text, "linear_num_key_heads", default=16),
        n_value_heads=count(text, "linear_num_value_heads", default=32),
        key_dim=count(text, "linear_key_head_dim", default=128),
        value_dim=count(text, "linear_value_head_dim", default=128),
        length=count(text, "linear_conv_kernel_dim", default=4, least=2),
    )
    kinds = {FULL: Layer(mixer=attention, mlp=mlp), LINEAR: Layer(mixer=delta, mlp=mlp)}
    every = count(text, "full_attention_interval", default=4)
    return Decoder(
        **sizes,
        **read_pattern(text, kinds, lambda index: LINEAR if (index + 1) % every else FULL),
        family="qwen3_5",
        architecture="Qwen3_5ForCausalLM",
        context=length,
        tied=flag(text, "tie_word_embeddings", default=False),
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where the checkpoint keeps a canonical tensor: of q and its gate, each head's rows follow each other."""
    return nested.spelled(_source(decoder, name))


def _source(decoder: Decoder, name: str) -> Source:
    _, _, module = name.partition(".")[2].partition(".")
    if module in _VECTORS:
        return Source(f"model.layers.{name.split('.')[1]}.{_DELTA}.{_VECTORS[module]}")
    place = Source(stored_name(name, _MODULES), plus=float(name.endswith("norm") and not name.endswith("head_norm")))
    if module == "delta.kernel":
        return replace(place, taps=next(iter(decoder.correcting.values())).length)
    if module in ("attention.q", "attention.gate"):
        attention = decoder.attentions[0]
        return replace(place, first=attention.q_size * (module == "attention.gate"), woven=attention.head_dim)
    return place
