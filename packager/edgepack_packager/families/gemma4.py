"""The text part of Gemma 4 E2B and E4B: layers that get a part of the token itself, the last of which read the keys and
values of earlier ones.

Heads of the layers without window are of another size, and their rope turns a part of the pairs. Norms store their
gain itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from msgspec import UNSET

from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp, arranged
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.families import gemma_like, llama_like, nested
from edgepack_packager.families.fields import FILE, agreed, count, flag, only, positive, read_context
from edgepack_packager.families.layers import FULL, SLIDING, read_names
from edgepack_packager.families.llama_like import Heads, read_heads, read_sizes, stored_name
from edgepack_packager.families.mapping import Source
from edgepack_packager.families.rope import read_ropes

_WITH_SENSES = "Gemma4ForConditionalGeneration"
_TEXT = ("gemma4_text",)

ARCHITECTURES = frozenset({"Gemma4ForCausalLM", _WITH_SENSES})
MODEL_TYPES = frozenset({"gemma4", *_TEXT})
# A layer that reads the keys of another may have some of its own, which nobody uses.
IGNORED = (
    rf"{nested.IGNORED}|{llama_like.IGNORED}"
    r"|(model\.)?(language_model\.)?(model\.)?layers\.\d+\.self_attn\.(k_proj|v_proj|k_norm)\.weight"
)

_MODULES: Mapping[str, str] = {
    **llama_like.MODULES,
    "mlp.norm": "pre_feedforward_layernorm",
    "inputs.gate": "per_layer_input_gate",
    "inputs.out": "per_layer_projection",
    "inputs.post_norm": "post_per_layer_input_norm",
}
_TENSORS: Mapping[str, str] = {
    "inputs.embedding": "model.embed_tokens_per_layer.weight",
    "inputs.projection": "model.per_layer_model_projection.weight",
    "inputs.norm": "model.per_layer_projection_norm.weight",
}

# What Gemma4TextConfig fills in.
_DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "sliding_window": 512,
    "hidden_size_per_layer_input": 256,
    "vocab_size_per_layer_input": 262144,
}


def describe(config: Mapping[str, Any], context: int | None) -> Decoder:
    """Return the decoder that a Gemma 4's config.json describes; absent optional fields are as in Gemma4TextConfig."""
    stated = nested.text_part(config, _WITH_SENSES, _TEXT)
    text = {**_DEFAULTS, **{name: value for name, value in stated.items() if value is not None}}
    _refuse_others(text)
    sizes, length = read_sizes(text), read_context(text, context)
    cap = text.get("final_logit_softcapping")
    return Decoder(
        **sizes,
        **arranged(_layers(text, length)),
        family="gemma4",
        architecture="Gemma4ForCausalLM",
        context=length,
        tied=flag(text, "tie_word_embeddings", default=True),
        embedding_scale=gemma_like.embedding_scale(text, sizes["hidden_size"]),
        logits_softcap=None if cap is None else positive(text, "final_logit_softcapping"),
        wide=True,
    )


def source(decoder: Decoder, name: str) -> Source:
    """Say where a Gemma 4 checkpoint keeps a canonical tensor, in the three spellings of its name."""
    if name in _TENSORS:
        return nested.spelled(Source(_TENSORS[name]))
    if name.endswith(".scale"):
        return nested.spelled(Source(f"model.{name.removesuffix('scale')}layer_scalar"))
    return nested.spelled(Source(stored_name(name, _MODULES)))


def _refuse_others(text: Mapping[str, Any]) -> None:
    only(text, "hidden_activation", "gelu_pytorch_tanh")
    for name in ("attention_bias", "attention_k_eq_v", "enable_moe_block"):
        only(text, name, False)
    if text.get("use_bidirectional_attention") == "all":  # "vision" is of images alone
        raise UnsupportedModelError(
            f"{FILE}: use_bidirectional_attention is 'all'; edgepack builds Gemma 4 as one that writes."
        )
    if size := count(text, "hidden_size_per_layer_input", least=0):
        only(text, "vocab_size_per_layer_input", count(text, "vocab_size"))
        if math.isqrt(size) ** 2 != size:  # transformers rounds the root to the type of the weights
            raise UnsupportedModelError(
                f"{FILE}: hidden_size_per_layer_input is {size}; edgepack builds squares only, as 256 is one."
            )


def _layers(text: Mapping[str, Any], context: int) -> list[Layer]:
    """Return all layers: the last ``num_kv_shared_layers`` read the keys of the last others of their type."""
    names = read_names(text, (SLIDING, FULL), lambda index: SLIDING if (index + 1) % 6 else FULL)
    names[-1] = FULL  # as transformers has it, whatever the file says
    heads = {SLIDING: read_heads(text, head_dim=256)}
    heads[FULL] = Heads(**{**heads[SLIDING], "head_dim": _global_head_dim(text, names)})
    ropes = read_ropes(text, {name: each["head_dim"] for name, each in heads.items()}, context, part=0.25)
    window = {SLIDING: count(text, "sliding_window"), FULL: None}
    own = len(names) - count(text, "num_kv_shared_layers", default=0, least=0)
    last = {name: index for index, name in enumerate(names[: max(own, 0)])}
    if missing := sorted({*names} - last.keys()):
        raise SourceError(f"{FILE}: num_kv_shared_layers leaves no {missing[0]} layer with keys of its own.")
    wide = flag(text, "use_double_wide_mlp", default=False)
    size, inputs = count(text, "intermediate_size"), count(text, "hidden_size_per_layer_input", least=0)

    def layer(index: int, name: str) -> Layer:
        shared = index >= own
        mixer = Attention(
            **heads[name],
            rope=ropes[name],
            window=window[name],
            scale=1.0,
            qk_norm="head",
            v_norm=UNSET if shared else True,
            kv_layer=last[name] if shared else UNSET,
        )
        mlp = Mlp(size=2 * size if shared and wide else size, activation="gelu_tanh")
        return Layer(mixer=mixer, mlp=mlp, norms="both", inputs=inputs or UNSET, scaled=True)

    return [layer(index, name) for index, name in enumerate(names)]


def _global_head_dim(text: Mapping[str, Any], names: list[str]) -> int:
    """Return the size of a head without window, which transformers 5 also writes as what single layers have else."""
    places: dict[str, int] = {}
    if text.get("global_head_dim") is not None:
        places["global_head_dim"] = count(text, "global_head_dim")
    single = text.get("per_layer_config") or {}
    for index, name in enumerate(names):
        own = single.get(str(index)) if isinstance(single, dict) else None
        if isinstance(own, dict) and own.get("head_dim") is not None:
            if name != FULL:
                raise UnsupportedModelError(f"{FILE}: per_layer_config.{index} is of a layer with a window.")
            places[f"per_layer_config.{index}.head_dim"] = count(own, "head_dim")
    return agreed(places) or 512
