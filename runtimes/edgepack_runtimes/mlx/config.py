"""Holds a payload's config.json against the decoder.

The runtime computes with the decoder's numbers, mlx-lm with the file's: a payload is the decoder's only if both say the
same. Of the file itself, nothing but how its ``model_type`` keeps tensors reaches the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, ProportionalScaling, Rope, YarnScaling


@dataclass(frozen=True, slots=True)
class Spelling:
    """What a ``model_type`` of mlx-lm means for the tensors: whether q, k, v and gate, up are fused, what is added to a
    stored norm to make it the gain, and what is called otherwise than in the model."""

    fused: bool = False
    gain_offset: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)

    def stored(self, name: str) -> str:
        """Return how the file calls a parameter of the model, or a module."""
        for ours, theirs in self.names.items():
            name = f"{name}.".replace(f".{ours}.", f".{theirs}.").removesuffix(".")
        return name


_LFM2: Mapping[str, str] = {
    "input_layernorm": "operator_norm",
    "q_norm": "q_layernorm",
    "k_norm": "k_layernorm",
    "o_proj": "out_proj",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "norm": "embedding_norm",
}

SPELLINGS: Mapping[str, Spelling] = {
    "llama": Spelling(),
    "smollm3": Spelling(),
    "qwen2": Spelling(),
    "qwen3": Spelling(),
    "phi3": Spelling(fused=True),
    "gemma2": Spelling(gain_offset=1.0),
    "gemma3_text": Spelling(gain_offset=1.0),
    "gemma4_text": Spelling(),
    "granite": Spelling(),
    "granitemoehybrid": Spelling(),
    "olmo2": Spelling(),
    "olmo3": Spelling(),
    "exaone4": Spelling(),
    "seed_oss": Spelling(),
    "ministral3": Spelling(),
    "hunyuan_v1_dense": Spelling(names={"q_norm": "query_layernorm", "k_norm": "key_layernorm"}),
    "stablelm": Spelling(),
    "lfm2": Spelling(names=_LFM2),
    "edgepack": Spelling(),  # what no model file of mlx-lm expresses
    "edgepack_gemma": Spelling(gain_offset=1.0),
}

_ACTIVATIONS = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


def disagreement(config: Mapping[str, Any], decoder: Decoder) -> str | None:
    """Return a clause that names the first field which says something else than the decoder, None without one."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in SPELLINGS:
        return f"model_type is {kind!r}, expected one of {', '.join(SPELLINGS)}"
    for key, value in (_block_fields(decoder) | _position_fields(decoder) | _own_fields(kind, decoder)).items():
        if not _same(config.get(key), value):
            return f"{key} is {config.get(key)!r}, the manifest says {value!r}"
    return None


def _block_fields(decoder: Decoder) -> dict[str, object]:
    attention, mlp = decoder.attentions[0], decoder.layer(0).mlp
    fields: dict[str, object] = {
        "vocab_size": decoder.n_vocab,
        "hidden_size": decoder.hidden_size,
        "intermediate_size": mlp.size,
        "num_hidden_layers": decoder.n_layers,
        "num_attention_heads": attention.n_heads,
        "num_key_value_heads": attention.n_kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": _ACTIVATIONS[mlp.activation],
        "layer_norm_eps" if decoder.norm else "rms_norm_eps": decoder.norm_eps,
        "attention_bias": attention.qkv_bias,
        "mlp_bias": mlp.bias,
        "tie_word_embeddings": decoder.tied,
        "attn_logit_softcapping": attention.softcap,
        "final_logit_softcapping": decoder.logits_softcap,
    }
    if attention.scale is not None:
        fields["query_pre_attn_scalar"] = attention.scale**-2
    return fields


def _position_fields(decoder: Decoder) -> dict[str, object]:
    """Where a decoder has two ropes, the last is that of the global layers, which has the usual names."""
    fields: dict[str, object] = {}
    layers = decoder.attentions
    if any(layer.window for layer in layers):
        fields["sliding_window"] = max(layer.window or 0 for layer in layers)
    if not all(layer.rope for layer in layers):
        fields["no_rope_layers"] = [int(bool(layer.rope)) for layer in layers]
    fields |= _state_fields(decoder)
    for rope in decoder.ropes[-1:]:
        fields |= {"rope_theta": rope.theta, "rope_scaling": _scaling(rope)}
        head_dim = next(layer.head_dim for layer in layers if layer.rope == rope)
        if rope.dim != head_dim:
            fields["partial_rotary_factor"] = rope.dim / head_dim
    for rope in decoder.ropes[:-1]:
        fields["rope_local_base_freq"] = rope.theta
    return fields


def _state_fields(decoder: Decoder) -> dict[str, object]:
    """Which layers keep states, and what those with such a mixer have in common."""
    fields: dict[str, object] = {}
    for name, layers in (("conv", decoder.convolving), ("linear_attention", decoder.correcting)):
        if layers:
            fields["layer_types"] = [name if each in layers else "full_attention" for each in range(decoder.n_layers)]
    for one in [*decoder.convolving.values()][:1]:
        fields |= {"conv_L_cache": one.length, "conv_bias": one.bias}
    for delta in [*decoder.correcting.values()][:1]:
        fields |= {"linear_num_key_heads": delta.n_key_heads, "linear_num_value_heads": delta.n_value_heads}
        fields |= {"linear_key_head_dim": delta.key_dim, "linear_value_head_dim": delta.value_dim}
        fields["linear_conv_kernel_dim"] = delta.length
    return fields


def _own_fields(kind: str, decoder: Decoder) -> dict[str, object]:
    """What one model file of mlx-lm reads, and the others do not."""
    layers = decoder.attentions
    fields: dict[str, object] = {}
    match kind:
        case "granite" | "granitemoehybrid":
            fields["attention_multiplier"] = layers[0].score_scale
            fields["embedding_multiplier"] = decoder.embedding_scale
            fields["logits_scaling"] = 1 / decoder.logits_scale
            fields["residual_multiplier"] = decoder.layer(0).residual_scale
            if kind == "granitemoehybrid":
                fields["position_embedding_type"] = "rope" if decoder.ropes else "nope"
        case "exaone4":
            letters = "".join("L" if layer.window else "G" for layer in layers[: len(decoder.pattern)])
            fields["sliding_window_pattern"] = letters if "L" in letters else None
        case "edgepack" if decoder.convolving and _proportional(decoder):
            fields |= _by_type(decoder)
            fields |= {"use_sandwich_norm": decoder.layer(0).post_norms, "use_attention_gate": bool(layers[0].gated)}
        case "gemma4_text":
            fields |= _gemma4_fields(decoder)
        case "lfm2":
            fields |= {"norm_eps": decoder.norm_eps, "block_auto_adjust_ff_dim": False}
            fields |= {"block_dim": decoder.hidden_size, "block_ff_dim": decoder.layer(0).mlp.size}
        case "stablelm":
            rope, attention = decoder.ropes[0], layers[0]
            fields |= {"use_qkv_bias": attention.qkv_bias, "partial_rotary_factor": rope.dim / attention.head_dim}
            fields |= {"use_parallel_residual": False, "qk_layernorm": False}
        case "seed_oss":
            fields["attention_out_bias"] = layers[0].output_bias
        case "ministral3":
            for rope, grows in zip(decoder.ropes[:1], decoder.temperatures[:1], strict=False):
                fields["rope_parameters"] = {
                    "rope_theta": rope.theta,
                    **(_scaling(rope) or {"rope_type": "default"}),
                    "llama_4_scaling_beta": grows.beta,
                    "original_max_position_embeddings": grows.length,
                }
    return fields


def _proportional(decoder: Decoder) -> bool:
    return any(isinstance(rope.scaling, ProportionalScaling) for rope in decoder.ropes)


def _by_type(decoder: Decoder) -> dict[str, object]:
    """What layers with a window and without have of their own, each type in its place."""
    names = {True: "sliding_attention", False: "full_attention"}
    ropes = {names[bool(layer.window)]: layer.rope for layer in decoder.attentions if layer.rope}
    return {
        "layer_types": [
            names[bool(layer.mixer.window)] if isinstance(layer.mixer, Attention) else "conv"
            for layer in decoder.layers
        ],
        "rope_parameters": {
            kind: {"rope_theta": rope.theta, **(_scaling(rope) or {"rope_type": "default"})}
            for kind, rope in ropes.items()
        },
        "rope_scaling": None,
    }


def _gemma4_fields(decoder: Decoder) -> dict[str, object]:
    sizes = {bool(layer.window): layer.head_dim for layer in decoder.attentions}
    return {
        **_by_type(decoder),
        "global_head_dim": sizes.get(False, decoder.attentions[0].head_dim),
        "num_kv_shared_layers": decoder.n_layers - len(decoder.keeping),
        "use_double_wide_mlp": decoder.layers[-1].mlp.size != decoder.layers[0].mlp.size,
        "hidden_size_per_layer_input": decoder.inputs,
        "vocab_size_per_layer_input": decoder.n_vocab,
    }


def _scaling(rope: Rope) -> dict[str, Any] | None:
    match rope.scaling:
        case None:
            return None
        case LinearScaling(factor):
            return {"rope_type": "linear", "type": "linear", "factor": factor}
        case Llama3Scaling(factor, low, high, context):
            return {
                "rope_type": "llama3",
                "type": "llama3",
                "factor": factor,
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": context,
            }
        case LongRopeScaling(factors):
            return {"type": "longrope", "short_factor": list(factors), "long_factor": list(factors)}
        case ProportionalScaling(turned):
            return {
                "rope_type": "proportional",
                "type": "proportional",
                "partial_rotary_factor": 2 * turned / rope.dim,
            }
        case YarnScaling():
            return {
                "rope_type": "yarn",
                "type": "yarn",
                "factor": rope.scaling.factor,
                "original_max_position_embeddings": rope.scaling.original_context,
                "beta_fast": rope.scaling.beta_fast,
                "beta_slow": rope.scaling.beta_slow,
                "attention_factor": rope.scaling.magnitude,
                "truncate": rope.scaling.whole,
                "mscale": _mscale(rope.scaling),
            }


def _mscale(yarn: YarnScaling) -> float:
    """Return the m that mlx-lm makes the magnitude of: 0.1 m ln(factor) + 1."""
    return (yarn.magnitude - 1) / (0.1 * math.log(yarn.factor)) if yarn.factor > 1 else 0.0


def _same(found: object, expected: object) -> bool:
    """Compare as JSON does, which has one type of number, and does not tell 96/128 from what it was computed to."""
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        return found.keys() == expected.keys() and all(_same(found[key], expected[key]) for key in expected)
    if isinstance(found, bool) or isinstance(expected, bool):
        return found is expected
    if isinstance(found, int | float) and isinstance(expected, int | float):
        return math.isclose(found, expected)
    return found == expected
