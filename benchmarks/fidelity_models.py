"""The models of ``fidelity.py``: one random checkpoint per family, with its published features and small numbers.

Sizes are large enough for blocks of 4 bits, windows and original contexts short enough for a prompt of 320 tokens.
An original context is no shorter than 256, because llama.cpp rounds a context up to a multiple of that.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from models import make_model, write_safetensors

from edgepack_packager.checkpoint import open_checkpoint

TOKENS = 320
CONTEXT = 512
WINDOW = 64
ORIGINAL = 256
# As many rows as the small tokenizer has entries: llama.cpp's converter drops the rows of a Gemma 3 that have no token.
VOCABULARY = 384
# Blocks and scores are audible in the logits, and 4 bits do not drown them.
GAIN = 0.6
NORMS_OF_Q_AND_K = 0.6


@dataclass(frozen=True, slots=True)
class Specimen:
    """A family's model: its title and features for a reader, its config.json, and the first position past its window
    or its original context (None: it has neither)."""

    title: str
    features: str
    fields: Mapping[str, Any]
    boundary: int | None


def make(specimen: Specimen, folder: Path) -> Path:
    """Write the checkpoint (bf16) and return its folder."""
    make_model(folder, specimen.fields, seed=7, gain=GAIN)
    offset = float(specimen.fields["model_type"].startswith("gemma"))
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}
    for name, tensor in tensors.items():
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            tensors[name] = np.float32(NORMS_OF_Q_AND_K) * (tensor + offset) - offset
    write_safetensors(folder, tensors, "bf16")
    return folder


_SHAPE: Mapping[str, Any] = {
    "hidden_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "intermediate_size": 1024,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "torch_dtype": "bfloat16",
}

_LLAMA: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 64,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": WINDOW,
    },
    "tie_word_embeddings": True,
}


def _longrope(pairs: int) -> Mapping[str, Any]:
    """Factors that rise as the published ones do: from 1 to 1.4, and from 1 to 65."""
    return {
        "type": "longrope",
        "short_factor": [1 + 0.4 * i / (pairs - 1) for i in range(pairs)],
        "long_factor": [65 ** (i / (pairs - 1)) for i in range(pairs)],
    }


# Trained for 32 times the original context, as published: cosine and sine grow by sqrt(1 + ln 32 / ln original).
_PHI3: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["Phi3ForCausalLM"],
    "model_type": "phi3",
    "num_key_value_heads": 8,
    "max_position_embeddings": 32 * ORIGINAL,
    "original_max_position_embeddings": ORIGINAL,
    "hidden_act": "silu",
    "attention_bias": False,
    "rope_theta": 10000.0,
    "rope_scaling": _longrope(32),
    "sliding_window": 262144,
    "tie_word_embeddings": False,
}

# 96 of 128 elements of a head rotate, as published.
_PHI4: Mapping[str, Any] = {
    **_PHI3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "partial_rotary_factor": 0.75,
    "rope_scaling": _longrope(48),
    "tie_word_embeddings": True,
}

_PHI3_4K: Mapping[str, Any] = {
    **_PHI3,
    "max_position_embeddings": CONTEXT,
    "original_max_position_embeddings": CONTEXT,
    "rope_scaling": None,
    "sliding_window": WINDOW,
}

_GEMMA: Mapping[str, Any] = {
    **_SHAPE,
    "head_dim": 64,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 64,
    "sliding_window": WINDOW,
    "attention_bias": False,
    "tie_word_embeddings": True,
}

# Caps that the scores and logits of random weights reach.
_GEMMA2: Mapping[str, Any] = {
    **_GEMMA,
    "architectures": ["Gemma2ForCausalLM"],
    "model_type": "gemma2",
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 6.0,
    "rope_theta": 10000.0,
}

_GEMMA3: Mapping[str, Any] = {
    **_GEMMA,
    "architectures": ["Gemma3ForCausalLM"],
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "sliding_window_pattern": 6,
    "rope_theta": 1000000.0,
    "rope_local_base_freq": 10000.0,
    "rope_scaling": {"rope_type": "linear", "factor": 8.0},
}

_QWEN2: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["Qwen2ForCausalLM"],
    "model_type": "qwen2",
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "max_window_layers": 4,
    "sliding_window": CONTEXT,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

_QWEN3: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "head_dim": 128,
    "hidden_act": "silu",
    "attention_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1000000.0,
    "rope_scaling": None,
    "max_window_layers": 4,
    "sliding_window": None,
    "use_sliding_window": False,
    "tie_word_embeddings": True,
}

_SMOLLM3: Mapping[str, Any] = {
    **_SHAPE,
    "architectures": ["SmolLM3ForCausalLM"],
    "model_type": "smollm3",
    "num_hidden_layers": 5,
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "rms_norm_eps": 1e-6,
    "rope_theta": 5000000.0,
    "rope_scaling": None,
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0, 1],
    "use_sliding_window": False,
    "sliding_window": None,
    "tie_word_embeddings": True,
}

SPECIMENS: Mapping[str, Specimen] = {
    "llama3": Specimen("Llama 3.2", "llama3 rope over an original context of 64, tied head", _LLAMA, WINDOW),
    "phi3-4k": Specimen("Phi-3-mini-4k", "fused projections, a window of 64 on every layer", _PHI3_4K, WINDOW),
    "phi3": Specimen("Phi-3.5-mini", "fused projections, longrope from an original context of 256", _PHI3, ORIGINAL),
    "phi4": Specimen("Phi-4-mini", "as Phi-3.5, and three quarters of each head rotate", _PHI4, ORIGINAL),
    "gemma2": Specimen(
        "Gemma 2", "a window of 64 on every second layer, norms after the blocks, both softcaps", _GEMMA2, WINDOW
    ),
    "gemma3": Specimen(
        "Gemma 3",
        "a window of 64 on five layers of six, two rope bases, linear rope scaling of the sixth, norms of q and k",
        _GEMMA3,
        WINDOW,
    ),
    "qwen2": Specimen("Qwen2.5", "biases on q, k and v", _QWEN2, None),
    "qwen3": Specimen("Qwen3", "norms of q and k, heads wider than the hidden size", _QWEN3, None),
    "smollm3": Specimen("SmolLM3", "no rope on every fourth layer", _SMOLLM3, None),
}
