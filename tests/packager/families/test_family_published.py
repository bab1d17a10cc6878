"""Models on the hub: what their config.json describes, and how many parameters they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from decoders import Positions, described

from edgepack.bundle.decoder import Temperature
from edgepack.bundle.rope import Llama3Scaling, Rope, YarnScaling


@dataclass(frozen=True)
class Published:
    """A model's config.json as far as it decides anything, how many parameters its sizes come to, and what it is."""

    config: Mapping[str, Any]
    parameters: int
    facts: Mapping[str, Any]


def _sizes(hidden: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, context: int, eps: float) -> Any:
    return {
        "hidden_size": hidden,
        "intermediate_size": mlp,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "rms_norm_eps": eps,
    }


_FACTOR_8 = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 8192, "beta_fast": 32.0}
_FACTOR_16 = {"rope_type": "llama3", "factor": 16.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
_STRETCHED = YarnScaling(8.0, 8192, magnitude=1.2079441541679836)
_LLAMA3 = Llama3Scaling(16.0, 1.0, 4.0, 8192)

PUBLISHED: Mapping[str, Published] = {
    "Mistral-7B-Instruct-v0.3": Published(
        {
            **_sizes(4096, 14336, 32, 32, 8, 32768, 32768, 1e-5),
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        7_248_023_552,
        {"pattern": (Positions(Rope(1000000.0, 128)),), "tied": False, "qk_norm": None},
    ),
    "Mistral-Nemo-Instruct-2407": Published(
        {
            **_sizes(5120, 14336, 40, 32, 8, 131072, 131072, 1e-5),
            "architectures": ["MistralForCausalLM"],
            "model_type": "mistral",
            "head_dim": 128,
            "rope_theta": 1000000.0,
            "sliding_window": None,
            "tie_word_embeddings": False,
        },
        12_247_782_400,
        {"head_dim": 128, "pattern": (Positions(Rope(1000000.0, 128)),)},
    ),
    "Ministral-3-3B-Instruct-2512": Published(
        {
            "architectures": ["Mistral3ForConditionalGeneration"],
            "model_type": "mistral3",
            "dtype": "bfloat16",
            "tie_word_embeddings": True,
            "text_config": {
                **_sizes(3072, 9216, 26, 32, 8, 131072, 262144, 1e-5),
                "model_type": "ministral3",
                "head_dim": 128,
                "sliding_window": None,
                "rope_parameters": {
                    "rope_type": "yarn",
                    "type": "yarn",
                    "rope_theta": 1000000.0,
                    "factor": 16.0,
                    "original_max_position_embeddings": 16384,
                    "beta_fast": 32.0,
                    "beta_slow": 1.0,
                    "mscale": 1.0,
                    "mscale_all_dim": 1.0,
                    "llama_4_scaling_beta": 0.1,
                },
            },
        },
        3_429_006_336,
        {
            "pattern": (Positions(Rope(1000000.0, 128, YarnScaling(16.0, 16384))),),
            "temperature": Temperature(0.1, 16384),
            "tied": True,
            "architecture": "Ministral3ForCausalLM",
        },
    ),
    "granite-3.3-8b-instruct": Published(
        {
            **_sizes(4096, 12800, 40, 32, 8, 49159, 131072, 1e-5),
            "architectures": ["GraniteForCausalLM"],
            "model_type": "granite",
            "attention_bias": False,
            "attention_multiplier": 0.0078125,
            "embedding_multiplier": 12.0,
            "logits_scaling": 16.0,
            "mlp_bias": False,
            "residual_multiplier": 0.22,
            "rope_scaling": None,
            "rope_theta": 10000000.0,
            "tie_word_embeddings": True,
        },
        8_170_864_640,
        {
            "attention_scale": 1 / 128,
            "embedding_scale": 12.0,
            "logits_scale": 1 / 16,
            "residual_scale": 0.22,
            "tied": True,
        },
    ),
    "gemma-2b-it": Published(
        {
            **_sizes(2048, 16384, 18, 8, 1, 256000, 8192, 1e-6),
            "architectures": ["GemmaForCausalLM"],
            "model_type": "gemma",
            "head_dim": 256,
            "hidden_act": "gelu",
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
        },
        2_506_172_416,
        {"activation": "gelu_tanh", "norms": "before", "embedding_scale": 45.25, "tied": True, "wide": True},
    ),
    "OLMo-2-0425-1B": Published(
        {
            **_sizes(2048, 8192, 16, 16, 16, 100352, 4096, 1e-6),
            "architectures": ["Olmo2ForCausalLM"],
            "model_type": "olmo2",
            "attention_bias": False,
            "rope_theta": 500000,
            "tie_word_embeddings": False,
        },
        1_484_916_736,
        {"norms": "after", "qk_norm": "width", "pattern": (Positions(Rope(500000.0, 128)),)},
    ),
    "Olmo-3-7B-Instruct": Published(
        {
            **_sizes(4096, 11008, 32, 32, 32, 100278, 65536, 1e-6),
            "architectures": ["Olmo3ForCausalLM"],
            "model_type": "olmo3",
            "layer_types": (["sliding_attention"] * 3 + ["full_attention"]) * 8,
            "rope_scaling": {**_FACTOR_8, "beta_slow": 1.0, "attention_factor": 1.2079441541679836},
            "rope_theta": 500000,
            "sliding_window": 4096,
            "tie_word_embeddings": False,
        },
        7_298_011_136,
        {
            "norms": "after",
            "pattern": (
                *[Positions(Rope(500000.0, 128), 4096)] * 3,
                Positions(Rope(500000.0, 128, _STRETCHED)),
            ),
        },
    ),
    "EXAONE-4.0-1.2B": Published(
        {
            **_sizes(2048, 4096, 30, 32, 8, 102400, 65536, 1e-5),
            "architectures": ["Exaone4ForCausalLM"],
            "model_type": "exaone4",
            "head_dim": 64,
            "rope_scaling": {**_FACTOR_16, "original_max_position_embeddings": 8192},
            "rope_theta": 1000000,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "tie_word_embeddings": True,
        },
        1_279_391_488,
        {"norms": "after", "qk_norm": "head", "pattern": (Positions(Rope(1000000.0, 64, _LLAMA3)),)},
    ),
    "EXAONE-4.0-32B": Published(
        {
            **_sizes(5120, 27392, 64, 40, 8, 102400, 131072, 1e-5),
            "architectures": ["Exaone4ForCausalLM"],
            "model_type": "exaone4",
            "head_dim": 128,
            "rope_scaling": {**_FACTOR_16, "original_max_position_embeddings": 8192},
            "rope_theta": 1000000,
            "sliding_window": 4096,
            "sliding_window_pattern": "LLLG",
            "tie_word_embeddings": False,
        },
        32_003_216_384,
        {"pattern": (*[Positions(Rope(1000000.0, 128, _LLAMA3), 4096)] * 3, Positions(None))},
    ),
    "ERNIE-4.5-0.3B-PT": Published(
        {
            **_sizes(1024, 3072, 18, 16, 2, 103424, 131072, 1e-5),
            "architectures": ["Ernie4_5_ForCausalLM"],
            "model_type": "ernie4_5",
            "head_dim": 128,
            "rope_theta": 500000,
            "tie_word_embeddings": True,
            "use_bias": False,
        },
        360_748_032,
        {"family": "ernie4_5", "head_dim": 128, "qkv_bias": False, "mlp_bias": False},
    ),
    "helium-1-preview-2b": Published(
        {
            **_sizes(2560, 7040, 24, 20, 20, 48000, 4096, 1e-8),
            "architectures": ["HeliumForCausalLM"],
            "model_type": "helium",
            "attention_bias": False,
            "head_dim": 128,
            "mlp_bias": False,
            "rope_theta": 100000.0,
            "tie_word_embeddings": False,
        },
        2_172_643_840,
        {"family": "helium", "norm_eps": 1e-8, "tied": False},
    ),
    "Hunyuan-MT-1.8B": Published(
        {
            **_sizes(2048, 6144, 32, 16, 4, 120818, 262144, 1e-5),
            "architectures": ["HunYuanDenseV1ForCausalLM"],
            "model_type": "hunyuan_v1_dense",
            "attention_bias": False,
            "head_dim": 128,
            "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0, "mscale": 1.0},
            "rope_theta": 10000.0,
            "tie_word_embeddings": True,
            "use_qk_norm": True,
        },
        1_791_080_448,
        {"qk_norm": "rotated", "pattern": (Positions(Rope(1e4 * 1000 ** (128 / 126), 128)),)},
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_model_is_what_its_sizes_and_fields_say(name: str) -> None:
    decoder = described(PUBLISHED[name].config)
    assert decoder.n_parameters == PUBLISHED[name].parameters
    for fact, value in PUBLISHED[name].facts.items():
        assert getattr(decoder, fact) == value, fact
