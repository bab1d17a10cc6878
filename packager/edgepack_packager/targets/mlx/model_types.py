"""The model files of mlx-lm 0.32 (``mlx_lm/models``): which decoders each expresses, and its own fields of config.json.

edgepack's runtime takes every number from the manifest; these files matter to those who load a payload with mlx-lm.
A payload names the first file that expresses the decoder. Where none does, it names the type "edgepack", which mlx-lm
refuses to load rather than run as something else.

What mlx-lm computes less exactly than the decoder says, and is accepted all the same:

- qwen2, qwen3, phi3 and gemma2 have no windows: they are exact up to the length of the window.
- phi3 has one list of longrope factors for all lengths: it gets the decoder's. It rounds the magnitude to the type of
  the activations, Phi's 1.1902 to 1.1875 in bfloat16.
- gemma2 and gemma4_text round the scale of the embeddings to the type of the activations, gemma3_text to bfloat16.
- granite, granitemoehybrid and ministral3 round the scale of the embeddings and the temperature of the queries to the
  type of the activations, and so does every file the magnitude of yarn.
- stablelm computes queries, keys and scores in float32, the runtime in the type of the activations.
- A rope that is given by its theta uses mlx's own powers: angles are off by 1e-6 of their size.

What has a file of its own and does not get it:

- Mistral, ERNIE 4.5 and Helium are Llamas once their heads are read apart: they get llama, and a Mistral whose layers
  all have a window phi3.
- Granite 4 gets granite where it rotates.
- The first Gemma gets "edgepack_gemma", a type of edgepack's own that keeps norms less one as its checkpoints do: the
  file gemma computes the exact gelu, and they mean the tanh approximation.
- A tied StableLM gets "edgepack": the file stablelm has a head of its own.
- A tied Seed-OSS gets "edgepack": the file seed_oss multiplies by the embedding as it is stored, packed or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.bundle.rope import LongRopeScaling
from edgepack_packager.targets.mlx.features import features
from edgepack_packager.targets.mlx.rope import parameters, partial_factor

Fields = dict[str, Any]


def _no_fields(decoder: Decoder) -> Fields:
    return {}


@dataclass(frozen=True, slots=True)
class ModelType:
    """A model file: the features that its models always have, those that they may have, what config.json gets beyond
    the fields that all types share, and how tensors are kept.

    ``fused``: q, k and v are one matrix, and so are gate and up. ``gain_offset``: what it adds to a stored norm.
    ``names``: how it calls modules that most call otherwise.
    """

    name: str
    architecture: str | None
    needs: frozenset[str]
    allows: frozenset[str]
    fields: Callable[[Decoder], Fields] = _no_fields
    fused: bool = False
    gain_offset: float = 0.0
    names: Mapping[str, str] = field(default_factory=dict)

    def expresses(self, decoder: Decoder) -> bool:
        """Say whether the file computes what the decoder describes."""
        return self.needs <= features(decoder) <= self.needs | self.allows


def choose(decoder: Decoder) -> ModelType:
    """Return the first model file that expresses the decoder, or ``OWN``."""
    return next((kind for kind in MODEL_TYPES if kind.expresses(decoder)), OWN)


def _phi3_fields(decoder: Decoder) -> Fields:
    """mlx-lm and transformers compute longrope's magnitude from the original context c and the longest context n:
    m = sqrt(1 + ln(n / c) / ln c), hence n = c ** (m * m)."""
    scaling = decoder.ropes[0].scaling
    if not isinstance(scaling, LongRopeScaling):
        return {}
    return {
        "original_max_position_embeddings": scaling.original_context,
        "max_position_embeddings": round(scaling.original_context**scaling.magnitude**2),
    }


def _gemma2_fields(decoder: Decoder) -> Fields:
    return {"hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": attention_scalar(decoder)}


def _gemma3_fields(decoder: Decoder) -> Fields:
    """Local layers always have a window here; one as long as the context hides nothing."""
    layers, length = decoder.attentions, len(decoder.pattern)
    local = layers[0]
    kinds = ["sliding_attention"] * (length - 1) + ["full_attention"]
    ropes = {kind: layer.rope for kind, layer in zip(kinds, layers, strict=False) if layer.rope}
    return {
        **_gemma2_fields(decoder),
        "sliding_window": local.window or decoder.context,
        "sliding_window_pattern": length,
        "layer_types": [kinds[layer % length] for layer in range(decoder.n_layers)],
        "rope_local_base_freq": decoder.ropes[0].theta,
        "rope_parameters": {kind: parameters(rope, local.head_dim) for kind, rope in ropes.items()},
    }


def _by_type(decoder: Decoder) -> Fields:
    """Say of layers with a window and without what each type has of its own; a rope stands in this place alone."""
    names = {True: "sliding_attention", False: "full_attention"}
    ropes = {names[bool(layer.window)]: layer for layer in decoder.attentions if layer.rope}
    return {
        "layer_types": [
            names[bool(layer.mixer.window)] if isinstance(layer.mixer, Attention) else "conv"
            for layer in decoder.layers
        ],
        "rope_parameters": {
            kind: parameters(layer.rope, layer.head_dim) for kind, layer in ropes.items() if layer.rope
        },
        "rope_scaling": None,
    }


def _lfm3_fields(decoder: Decoder) -> Fields:
    sandwiched, gated = decoder.layer(0).post_norms, bool(decoder.attentions[0].gated)
    return {**_by_type(decoder), "use_sandwich_norm": sandwiched, "use_attention_gate": gated}


def _gemma4_fields(decoder: Decoder) -> Fields:
    """The file takes an absent softcap for one of 30."""
    layers = decoder.attentions
    sizes = {bool(layer.window): layer.head_dim for layer in layers}
    return {
        **_by_type(decoder),
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": sizes.get(True, layers[0].head_dim),
        "global_head_dim": sizes.get(False, layers[0].head_dim),
        "sliding_window": max(layer.window or 0 for layer in layers) or decoder.context,
        "num_kv_shared_layers": decoder.n_layers - len(decoder.keeping),
        "use_double_wide_mlp": decoder.layers[-1].mlp.size != decoder.layers[0].mlp.size,
        "hidden_size_per_layer_input": decoder.inputs,
        "vocab_size_per_layer_input": decoder.n_vocab,
        "attention_k_eq_v": False,
        "enable_moe_block": False,
        "final_logit_softcapping": decoder.logits_softcap,
    }


def _granite_fields(decoder: Decoder) -> Fields:
    return {
        "attention_multiplier": decoder.attentions[0].score_scale,
        "embedding_multiplier": decoder.embedding_scale,
        "logits_scaling": 1 / decoder.logits_scale,
        "residual_multiplier": decoder.layer(0).residual_scale,
    }


def _still_granite_fields(decoder: Decoder) -> Fields:
    kinds = ["attention"] * decoder.n_layers
    size = decoder.layer(0).mlp.size
    fields = {"layer_types": kinds, "num_local_experts": 0, "shared_intermediate_size": size}
    return {**_granite_fields(decoder), **fields, "position_embedding_type": "nope"}


def _olmo3_fields(decoder: Decoder) -> Fields:
    """Both kinds of layers have one theta here, and those without a window may stretch it."""
    layers = decoder.attentions[: len(decoder.pattern)]
    ropes = {"sliding_attention": layers[0].rope, "full_attention": layers[-1].rope}
    return {
        "rope_parameters": {kind: parameters(rope, layers[0].head_dim) for kind, rope in ropes.items() if rope},
    }


def _exaone4_fields(decoder: Decoder) -> Fields:
    """The file takes no absent field for a null."""
    layers = decoder.attentions[: len(decoder.pattern)]
    if not any(layer.window for layer in layers):
        return {"sliding_window": None, "sliding_window_pattern": None}
    return {"sliding_window_pattern": "".join("L" if layer.window else "G" for layer in layers)}


def _seed_oss_fields(decoder: Decoder) -> Fields:
    return {"attention_out_bias": decoder.attentions[0].output_bias}


def _stablelm_fields(decoder: Decoder) -> Fields:
    """The file has no rope but by these, and where nothing is said of a part, transformers turns a quarter."""
    attention, rope = decoder.attentions[0], decoder.ropes[0]
    part = {"partial_rotary_factor": partial_factor(rope, attention.head_dim)}
    return {
        **part,
        "rope_parameters": {**parameters(rope, attention.head_dim), **part},
        "use_qkv_bias": attention.qkv_bias,
        "use_parallel_residual": False,
        "qk_layernorm": False,
    }


def _ministral3_fields(decoder: Decoder) -> Fields:
    """All of the rope is read from here, and where the queries begin to grow is the rope's original context."""
    attention = decoder.attentions[0]
    assert attention.rope
    assert attention.temperature
    return {
        "rope_parameters": {
            **parameters(attention.rope, attention.head_dim),
            "llama_4_scaling_beta": attention.temperature.beta,
            "original_max_position_embeddings": attention.temperature.length,
        }
    }


def attention_scalar(decoder: Decoder) -> float:
    """Return what the scores are divided by the root of; a whole number where it is meant to be one."""
    scalar = round(decoder.attentions[0].score_scale ** -2, 9)
    return int(scalar) if scalar.is_integer() else scalar


_LFM2 = {
    "input_layernorm": "operator_norm",
    "self_attn.q_norm": "self_attn.q_layernorm",
    "self_attn.k_norm": "self_attn.k_layernorm",
    "self_attn.o_proj": "self_attn.out_proj",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.up_proj": "feed_forward.w3",
    "mlp.down_proj": "feed_forward.w2",
    "model.norm": "model.embedding_norm",
}

_STRETCHED = frozenset({"linear", "llama3", "yarn"})
_BIASES = frozenset({"attention_bias", "mlp_bias"})
_LLAMA = _STRETCHED | _BIASES | {"untied", "head_dim", "windows", "mixed_layers"}
_NO_WINDOWS = frozenset({"windows", "other_windows", "mixed_layers"})
_QWEN = _NO_WINDOWS | _STRETCHED | {"untied"}
_PHI = _NO_WINDOWS | {"longrope", "partial_rope", "untied"}
_ALL_GEMMA = frozenset({"gelu_tanh", "post_norms", "root_embedding_scale"})
_SCALES = frozenset({
    "attention_scale", "unscaled_scores", "residual_scale", "logits_scale", "root_embedding_scale",
    "other_embedding_scale",
})  # fmt: skip
_STILL = frozenset({"layers_without_rope", "no_ropes"})
_OLMO = frozenset({"norms_after", "wide_qk_norm"})
_EXAONE = frozenset({"norms_after", "qk_norm"})
_SOME_GEMMA = frozenset({"head_dim", "attention_scale"})

MODEL_TYPES = (
    ModelType("llama", "LlamaForCausalLM", frozenset(), _LLAMA),
    ModelType(
        "smollm3", "SmolLM3ForCausalLM", frozenset({"layers_without_rope"}), _LLAMA | {"ropes_of_windows", "no_ropes"}
    ),
    ModelType("qwen2", "Qwen2ForCausalLM", frozenset({"qkv_bias"}), _QWEN),
    ModelType("qwen3", "Qwen3ForCausalLM", frozenset({"qk_norm"}), _QWEN | {"head_dim"}),
    ModelType("phi3", "Phi3ForCausalLM", frozenset(), _PHI, _phi3_fields, fused=True),
    ModelType(
        "gemma2",
        "Gemma2ForCausalLM",
        _ALL_GEMMA | {"attention_softcap", "logits_softcap"},
        _SOME_GEMMA | _NO_WINDOWS,
        _gemma2_fields,
        gain_offset=1.0,
    ),
    ModelType(
        "gemma3_text",
        "Gemma3ForCausalLM",
        _ALL_GEMMA | {"qk_norm"},
        _SOME_GEMMA | {"windows", "two_ropes", "two_thetas", "linear", "llama3", "untied"},
        _gemma3_fields,
        gain_offset=1.0,
    ),
    ModelType(
        "gemma4_text",
        "Gemma4ForCausalLM",
        _ALL_GEMMA | {"qk_norm", "v_norm", "scaled_layers", "unscaled_scores"},
        _SOME_GEMMA
        | {"windows", "mixed_layers", "two_sizes", "two_ropes", "two_thetas", "proportional", "token_inputs"}
        | {"untied", "logits_softcap"},
        _gemma4_fields,
    ),
    ModelType(
        "granite", "GraniteForCausalLM", frozenset(), _SCALES | _STRETCHED | _BIASES | {"untied"}, _granite_fields
    ),
    ModelType(
        "granitemoehybrid",
        "GraniteMoeHybridForCausalLM",
        _STILL,
        _SCALES | _BIASES | {"untied"},
        _still_granite_fields,
    ),
    ModelType("olmo2", "Olmo2ForCausalLM", _OLMO, _STRETCHED | _BIASES | {"untied", "head_dim"}),
    ModelType(
        "olmo3",
        "Olmo3ForCausalLM",
        _OLMO | {"windows"},
        _STRETCHED | {"two_ropes", "attention_bias", "untied", "head_dim"},
        _olmo3_fields,
    ),
    ModelType("exaone4", "Exaone4ForCausalLM", _EXAONE, _STRETCHED | {"untied", "head_dim"}, _exaone4_fields),
    ModelType(
        "exaone4",
        "Exaone4ForCausalLM",
        _EXAONE | {"windows", "layers_without_rope", "ropes_of_windows"},
        _STRETCHED | {"untied", "head_dim", "mixed_layers"},
        _exaone4_fields,
    ),
    ModelType(
        "seed_oss",
        "SeedOssForCausalLM",
        frozenset({"untied"}),
        _STRETCHED | _BIASES | {"qkv_bias", "output_bias", "head_dim"},
        _seed_oss_fields,
    ),
    ModelType(
        "ministral3",
        "Ministral3ForCausalLM",
        frozenset({"temperature"}),
        _STRETCHED | {"untied", "head_dim", "windows", "mixed_layers"},
        _ministral3_fields,
    ),
    ModelType(
        "hunyuan_v1_dense",
        "HunYuanDenseV1ForCausalLM",
        frozenset({"rotated_qk_norm"}),
        frozenset({"attention_bias", "untied", "head_dim"}),
        names={"self_attn.q_norm": "self_attn.query_layernorm", "self_attn.k_norm": "self_attn.key_layernorm"},
    ),
    ModelType(
        "stablelm",
        "StableLmForCausalLM",
        frozenset({"layer_norms", "untied"}),
        frozenset({"qkv_bias", "partial_rope"}),
        _stablelm_fields,
    ),
    ModelType("lfm2", "Lfm2ForCausalLM", frozenset({"convolutions", "qk_norm"}), frozenset(), names=_LFM2),
    # In LFM3's words, of which mlx-lm knows none.
    ModelType(
        "edgepack",
        "Lfm3ForCausalLM",
        frozenset({"convolutions", "qk_norm", "proportional"}),
        frozenset({"post_norms", "gated", "windows", "mixed_layers", "two_ropes", "two_thetas", "head_dim", "untied"}),
        _lfm3_fields,
    ),
    ModelType(
        "edgepack_gemma",
        None,
        frozenset({"gelu_tanh", "root_embedding_scale"}),
        _SOME_GEMMA | {"linear", "attention_bias", "untied"},
        gain_offset=1.0,
    ),
)

OWN = ModelType("edgepack", None, frozenset(), frozenset())
