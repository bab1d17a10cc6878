"""The random models that the reference is held to transformers with: a few Llamas, and one or two of each family.

Each is small and has all features of its family on, with windows and rope boundaries inside a prompt of 300 tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from models import LINEAR, LLAMA3, make_llama, make_model


@dataclass(frozen=True)
class Fixture:
    """``make`` writes the checkpoint into a folder; ``context`` is what it is described for, as in ``families``.

    ``fields`` is its config.json, for a model that was made from one.
    """

    make: Callable[[Path], Path]
    context: int | None = None
    fields: Mapping[str, Any] | None = None


# Short names for what all have: a key that a family lacks is one that its transformers class does not read.
_SMALL: Mapping[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 192,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "float32",
}

LONGROPE: Mapping[str, Any] = {
    "type": "longrope",
    "short_factor": [1.0 + i / 40 for i in range(16)],
    "long_factor": [1.5 + i * i / 20 for i in range(16)],
}

PHI3: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_key_value_heads": 4,
    "hidden_act": "silu",
    "attention_bias": False,
    "original_max_position_embeddings": 64,
    "rope_theta": 10000.0,
    "rope_scaling": LONGROPE,
    "sliding_window": 262144,
    "tie_word_embeddings": False,
}

# The same model as transformers 5 writes it.
PHI3_V5: Mapping[str, Any] = {
    **{k: v for k, v in PHI3.items() if k not in ("rope_theta", "rope_scaling", "torch_dtype", "attention_bias")},
    "dtype": "float32",
    "rope_parameters": {
        **LONGROPE,
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "original_max_position_embeddings": 64,
    },
}

# Three quarters of a head of 32 elements rotate: 12 pairs.
PHI4: Mapping[str, Any] = {
    **PHI3,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.75,
    "rope_scaling": {k: v if k == "type" else v[:12] for k, v in LONGROPE.items()},
    "full_attn_mod": 1,
    "interpolate_factor": 1,
    "lm_head_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": True,
}

PHI3_4K: Mapping[str, Any] = {
    **PHI3,
    "original_max_position_embeddings": 512,
    "rope_scaling": None,
    "sliding_window": 24,
}

GEMMA2: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "hidden_size": 192,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 6.0,
    "sliding_window": 24,
    "rope_theta": 10000.0,
}

# In bf16, which rounds sqrt(192) from 13.856 to 13.875.
GEMMA3: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "head_dim": 32,
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window": 24,
    "sliding_window_pattern": 3,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    "torch_dtype": "bfloat16",
}

_V4_ROPE = ("rope_theta", "rope_local_base_freq", "rope_scaling", "torch_dtype", "sliding_window_pattern")

# The same model as transformers 5 writes it.
GEMMA3_V5: Mapping[str, Any] = {
    **{k: v for k, v in GEMMA3.items() if k not in _V4_ROPE},
    "dtype": "bfloat16",
    "layer_types": ["full_attention" if i % 3 == 2 else "sliding_attention" for i in range(5)],
    "_sliding_window_pattern": 3,
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
}

# As on the hub: what the text part does not say is Gemma3TextConfig's default, 8 heads of 256 and four for keys.
GEMMA3_VISION: Mapping[str, Any] = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "eos_token_id": [2],
    "boi_token_index": 380,
    "eoi_token_index": 381,
    "image_token_index": 384,
    "mm_tokens_per_image": 4,
    "torch_dtype": "bfloat16",
    "text_config": {
        "model_type": "gemma3_text",
        "hidden_size": 96,
        "intermediate_size": 128,
        "num_hidden_layers": 7,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
        "sliding_window": 24,
        "vocab_size": 384,
    },
    "vision_config": {
        "hidden_size": 32,
        "image_size": 28,
        "intermediate_size": 64,
        "model_type": "siglip_vision_model",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 7,
        "vision_use_head": False,
    },
}

QWEN2: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_window_layers": 2,
    "sliding_window": 512,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

QWEN2_WINDOW: Mapping[str, Any] = {**QWEN2, "use_sliding_window": True, "sliding_window": 24}

QWEN3: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 48,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_window_layers": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": False,
}

SMOLLM3: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "rope_scaling": None,
    "no_rope_layers": [1, 1, 1, 0, 1],
    "no_rope_layer_interval": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

MISTRAL: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["MistralForCausalLM"],
    "model_type": "mistral",
    "head_dim": 48,
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "sliding_window": 24,
    "tie_word_embeddings": False,
}

MINISTRAL: Mapping[str, Any] = {
    **MISTRAL,
    "architectures": ["MinistralForCausalLM"],
    "model_type": "ministral",
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention", "sliding_attention"],
}

# As on the hub, under a model that sees; the first 64 positions are its original context.
MINISTRAL3: Mapping[str, Any] = {
    "architectures": ["Mistral3ForConditionalGeneration"],
    "model_type": "mistral3",
    "torch_dtype": "float32",
    "image_token_index": 10,
    "text_config": {
        **{key: value for key, value in _SMALL.items() if key != "torch_dtype"},
        "model_type": "ministral3",
        "head_dim": 48,
        "hidden_act": "silu",
        "sliding_window": None,
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "yarn",
            "type": "yarn",
            "rope_theta": 10000.0,
            "factor": 16.0,
            "original_max_position_embeddings": 64,
            "max_position_embeddings": 512,
            "beta_fast": 8.0,
            "beta_slow": 1.0,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "llama_4_scaling_beta": 0.2,
        },
    },
    "vision_config": {
        "hidden_size": 32,
        "head_dim": 16,
        "image_size": 28,
        "intermediate_size": 64,
        "model_type": "pixtral",
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "patch_size": 7,
    },
}

GRANITE: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["GraniteForCausalLM"],
    "model_type": "granite",
    "hidden_act": "silu",
    "attention_bias": True,
    "mlp_bias": True,
    "attention_multiplier": 0.25,
    "embedding_multiplier": 0.5,
    "logits_scaling": 8.0,
    "residual_multiplier": 0.22,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
}

GRANITE4: Mapping[str, Any] = {
    **GRANITE,
    "architectures": ["GraniteMoeHybridForCausalLM"],
    "model_type": "granitemoehybrid",
    "attention_bias": False,
    "layer_types": ["attention"] * 4,
    "num_local_experts": 0,
    "num_experts_per_tok": 0,
    "position_embedding_type": "rope",
    "shared_intermediate_size": 160,
}

GEMMA: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["GemmaForCausalLM"],
    "model_type": "gemma",
    "hidden_size": 192,
    "head_dim": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "torch_dtype": "bfloat16",
}

OLMO2: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Olmo2ForCausalLM"],
    "model_type": "olmo2",
    "attention_bias": False,
    "hidden_act": "silu",
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
}

OLMO3: Mapping[str, Any] = {
    **OLMO2,
    "architectures": ["Olmo3ForCausalLM"],
    "model_type": "olmo3",
    "num_hidden_layers": 5,
    "sliding_window": 24,
    "rope_scaling": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 64,
        "beta_fast": 32,
        "beta_slow": 1,
        "attention_factor": 1.2079441541679836,
    },
}

EXAONE4: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Exaone4ForCausalLM"],
    "model_type": "exaone4",
    "num_hidden_layers": 5,
    "head_dim": 48,
    "hidden_act": "silu",
    "rope_theta": 1000000.0,
    "rope_scaling": LLAMA3,
    "sliding_window": 24,
    "sliding_window_pattern": "LLLG",
    "layer_types": ["full_attention" if i % 4 == 3 else "sliding_attention" for i in range(5)],
    "tie_word_embeddings": False,
}

# Without windows every layer rotates.
EXAONE4_FULL: Mapping[str, Any] = {
    **EXAONE4,
    "sliding_window": None,
    "sliding_window_pattern": None,
    "layer_types": ["full_attention"] * 5,
    "tie_word_embeddings": True,
}

SEED_OSS: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["SeedOssForCausalLM"],
    "model_type": "seed_oss",
    "attention_bias": True,
    "attention_out_bias": False,
    "attention_dropout": 0.0,
    "residual_dropout": 0.0,
    "head_dim": 48,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_theta": 10000000.0,
    "tie_word_embeddings": False,
}

ERNIE: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Ernie4_5ForCausalLM"],
    "model_type": "ernie4_5",
    "head_dim": 48,
    "hidden_act": "silu",
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "use_bias": True,
}

HELIUM: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["HeliumForCausalLM"],
    "model_type": "helium",
    "attention_bias": False,
    "head_dim": 32,
    "hidden_act": "silu",
    "mlp_bias": False,
    "rope_theta": 100000.0,
    "tie_word_embeddings": False,
}

HUNYUAN: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["HunYuanDenseV1ForCausalLM"],
    "model_type": "hunyuan_v1_dense",
    "attention_bias": False,
    "head_dim": 48,
    "hidden_act": "silu",
    "rope_theta": 10000.0,
    "rope_scaling": {
        "type": "dynamic",
        "alpha": 1000.0,
        "factor": 1.0,
        "beta_fast": 32,
        "beta_slow": 1,
        "mscale": 1.0,
        "mscale_all_dim": 1.0,
    },
    "tie_word_embeddings": True,
}

# A kernel of another length than those of the hub, which are of 3.
LFM2: Mapping[str, Any] = {
    **{key: value for key, value in _SMALL.items() if key not in ("rms_norm_eps", "intermediate_size")},
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "num_hidden_layers": 6,
    "block_auto_adjust_ff_dim": True,
    "block_dim": 128,
    "block_ff_dim": 270,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 32,
    "block_norm_eps": 1e-5,
    "conv_L_cache": 4,
    "conv_bias": False,
    "conv_dim": 128,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention", "conv"],
    "norm_eps": 1e-5,
    "rope_theta": 1000000.0,
    "tie_embedding": True,
}

# As files of the first releases say it, with biases.
LFM2_BIASED: Mapping[str, Any] = {
    **{key: value for key, value in LFM2.items() if key not in ("layer_types", "tie_embedding")},
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 192,
    "conv_bias": True,
    "conv_L_cache": 3,
    "full_attn_idxs": [1, 4],
    "num_hidden_layers": 5,
    "tie_word_embeddings": False,
}

# Both types of attention between convolutions.
LFM3: Mapping[str, Any] = {
    **{key: value for key, value in _SMALL.items() if key != "rms_norm_eps"},
    "architectures": ["Lfm3ForCausalLM"],
    "model_type": "lfm3",
    "num_hidden_layers": 6,
    "conv_L_cache": 7,
    "head_dim": 64,
    "layer_types": ["conv", "conv", "full_attention", "conv", "sliding_attention", "conv"],
    "norm_eps": 1e-5,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "sliding_window": 24,
    "torch_dtype": "float16",
}

# Heads of keys and of values of other sizes than those of the hub, which are alike.
QWEN3_5: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Qwen3_5ForCausalLM"],
    "model_type": "qwen3_5_text",
    "num_hidden_layers": 5,
    "attention_bias": False,
    "head_dim": 64,
    "hidden_act": "silu",
    "layer_types": [*["linear_attention"] * 3, "full_attention", "linear_attention"],
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_value_head_dim": 24,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [3, 3, 2],
    },
    "tie_word_embeddings": True,
    "torch_dtype": "float16",
}

# Layers of both types share keys, which lie behind two windows; 16 of 32 pairs turn in those without.
GEMMA4: Mapping[str, Any] = {
    **_SMALL,
    "architectures": ["Gemma4ForCausalLM"],
    "model_type": "gemma4_text",
    "num_hidden_layers": 8,
    "head_dim": 32,
    "global_head_dim": 64,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 64,
    "vocab_size_per_layer_input": 384,
    "final_logit_softcapping": 30.0,
    "layer_types": [
        *("sliding_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"),
        *("sliding_attention", "sliding_attention", "full_attention"),
    ],
    "num_kv_shared_layers": 3,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {
        "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.5, "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    },
    "sliding_window": 24,
    "use_double_wide_mlp": True,
    "torch_dtype": "bfloat16",
}

# Heads of 32, a quarter of which turns; eps in the field of a LayerNorm.
STABLELM: Mapping[str, Any] = {
    **{key: value for key, value in _SMALL.items() if key != "rms_norm_eps"},
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "hidden_act": "silu",
    "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "use_qkv_bias": True,
    "torch_dtype": "float16",
}


def _llama(**arguments: Any) -> Fixture:
    return Fixture(partial(make_llama, **arguments))


def _model(fields: Mapping[str, Any], seed: int, dtype: str = "f32", context: int | None = None) -> Fixture:
    return Fixture(partial(make_model, fields=fields, seed=seed, dtype=dtype), context, fields)


ORACLE_MODELS: Mapping[str, Fixture] = {
    "sharded-llama3": _llama(
        seed=1,
        dtype="f16",
        shards=2,
        tied=False,
        hidden=256,
        intermediate=512,
        layers=4,
        heads=8,
        theta=500000.0,
        rope=LLAMA3,
    ),
    "tied-linear": _llama(seed=2, rope=LINEAR, layers=3),
    "explicit-head-dim": _llama(seed=3, dtype="f32", tied=False, hidden=96, heads=6, kv_heads=3, head_dim=32),
    "biases": _llama(seed=4, tied=False, attention_bias=True, mlp_bias=True),
    "v5-spelling": _llama(seed=5, theta=500000.0, rope=LLAMA3, spelling="v5"),
    "phi3-short": _model(PHI3, seed=21),
    "phi3-long": _model(PHI3, seed=21, context=512),
    "phi3-v5": _model(PHI3_V5, seed=21, context=512),
    "phi3-4k": _model(PHI3_4K, seed=22),
    "phi4": _model(PHI4, seed=23, dtype="f16", context=512),
    "gemma2": _model(GEMMA2, seed=24),
    "gemma3": _model(GEMMA3, seed=25, dtype="bf16"),
    "gemma3-v5": _model(GEMMA3_V5, seed=25, dtype="bf16"),
    "gemma3-vision": _model(GEMMA3_VISION, seed=26, dtype="bf16", context=512),
    "qwen2": _model(QWEN2, seed=27),
    "qwen2-window": _model(QWEN2_WINDOW, seed=27),
    "qwen3": _model(QWEN3, seed=28),
    "smollm3": _model(SMOLLM3, seed=29),
    "mistral": _model(MISTRAL, seed=31),
    "ministral": _model(MINISTRAL, seed=32),
    "ministral3": _model(MINISTRAL3, seed=33),
    "granite": _model(GRANITE, seed=34),
    "granite4": _model(GRANITE4, seed=35),
    "gemma": _model(GEMMA, seed=36, dtype="bf16"),
    "olmo2": _model(OLMO2, seed=37),
    "olmo3": _model(OLMO3, seed=38),
    "exaone4": _model(EXAONE4, seed=39),
    "exaone4-full": _model(EXAONE4_FULL, seed=40),
    "seed-oss": _model(SEED_OSS, seed=41),
    "ernie4.5": _model(ERNIE, seed=42),
    "helium": _model(HELIUM, seed=43),
    "hunyuan": _model(HUNYUAN, seed=44),
    "lfm2": _model(LFM2, seed=45),
    "lfm2-biased": _model(LFM2_BIASED, seed=46),
    "qwen3.5": _model(QWEN3_5, seed=47, dtype="f16"),
    "lfm3": _model(LFM3, seed=49, dtype="f16"),
    "gemma4": _model(GEMMA4, seed=48, dtype="bf16"),
    "stablelm": _model(STABLELM, seed=50, dtype="f16"),
}
