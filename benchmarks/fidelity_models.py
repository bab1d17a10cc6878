"""The models of ``fidelity.py``: one random checkpoint per family, with its published features and small numbers.

Each is the model that the tests hold to transformers, made larger: sizes that blocks of 4 bits divide, windows and
original contexts short enough for a prompt of 320 tokens. An original context that decides between two lists of
factors is no shorter than 256, because llama.cpp rounds a context up to a multiple of that.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import oracle_models as tested
from models import LLAMA3, less_one, make_model, text_of, write_safetensors

from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32

TOKENS = 320
CONTEXT = 512
WINDOW = 64
ORIGINAL = 256
# As many rows as the small tokenizer has entries: llama.cpp's converter drops the rows of a Gemma 3 that have no token.
VOCABULARY = 384
# Blocks and scores are audible in the logits, and 4 bits do not drown them.
GAIN = 0.6
NORMS_OF_Q_AND_K = 0.6

# Models that also see whose tensors have the names of text below those of the whole; nothing of what sees is made.
_WITHIN = frozenset({"gemma4", "qwen3_5"})

Fields = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Specimen:
    """A family's model: its title and features for a reader, its config.json, and the first position past its window
    or its original context (None: it has neither)."""

    title: str
    features: str
    fields: Fields
    boundary: int | None


def make(specimen: Specimen, folder: Path) -> Path:
    """Write the checkpoint (bf16) and return its folder."""
    make_model(folder, specimen.fields, seed=7, gain=GAIN)
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}
    if specimen.fields["model_type"] in _WITHIN:
        tensors = _within(tensors)
    if specimen.fields["model_type"] == "qwen3_5":
        tensors |= _mtp(tensors, text_of(specimen.fields))
    for name, tensor in tensors.items():
        if re.search(r"self_attn\.(q|k|query|key)_(layer)?norm\.weight$", name):
            offset = np.float32(less_one(name, specimen.fields))
            tensors[name] = np.float32(NORMS_OF_Q_AND_K) * (tensor + offset) - offset
    write_safetensors(folder, tensors, "bf16")
    return folder


def _within(tensors: Mapping[str, Float32]) -> dict[str, Float32]:
    """Return the tensors of text, by the names that they have below those of the whole."""
    prefix = "language_model."
    text = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in text.items()}


def _mtp(tensors: Mapping[str, Float32], fields: Fields) -> dict[str, Float32]:
    """Return what guesses one more token, which llama.cpp's converter expects: a layer that attends, and before it a
    projection. No tool runs it here."""
    layer = f"model.language_model.layers.{fields['layer_types'].index('full_attention')}."
    same = {name.replace(layer, "mtp.layers.0."): tensor for name, tensor in tensors.items() if name.startswith(layer)}
    hidden = fields["hidden_size"]
    norms = ("norm", "pre_fc_norm_embedding", "pre_fc_norm_hidden")
    same |= {f"mtp.{name}.weight": np.zeros(hidden, np.float32) for name in norms}
    return {**same, "mtp.fc.weight": np.zeros((hidden, 2 * hidden), np.float32)}


_SIZES: Fields = {
    "hidden_size": 512,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "intermediate_size": 1024,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": CONTEXT,
    "sliding_window": WINDOW,
    "torch_dtype": "bfloat16",
}


def _sized(fields: Fields, **changes: Any) -> Fields:
    """Return a tested model's fields with the sizes of here, of those that it states, and with changes."""
    sizes = {name: value for name, value in _SIZES.items() if fields.get(name) is not None}
    return {**fields, **sizes, **changes}


def _with_senses(wrapper: str, model_type: str, text: Fields) -> Fields:
    """Return the fields of a model that also sees, whose text part is the one given.

    What the hub's files may say in both places stands in both: mlx-lm reads one or the other.
    """
    within = {name: value for name, value in text.items() if name != "architectures"}
    both = {name: text[name] for name in ("vocab_size", "torch_dtype", "tie_word_embeddings") if name in text}
    return {"architectures": [wrapper], "model_type": model_type, **both, "text_config": within}


def _longrope(pairs: int) -> Fields:
    """Factors that rise as the published ones do: from 1 to 1.4, and from 1 to 65."""
    return {
        "type": "longrope",
        "short_factor": [1 + 0.4 * i / (pairs - 1) for i in range(pairs)],
        "long_factor": [65 ** (i / (pairs - 1)) for i in range(pairs)],
    }


_LLAMA: Fields = {
    **{name: value for name, value in _SIZES.items() if name != "sliding_window"},
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": 4,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "attention_bias": False,
    "mlp_bias": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "rope_theta": 500000.0,
    "rope_scaling": LLAMA3,
    "tie_word_embeddings": True,
}

# Trained for 32 times the original context, as published: cosine and sine grow by sqrt(1 + ln 32 / ln original).
_TRAINED: Fields = {"max_position_embeddings": 32 * ORIGINAL, "original_max_position_embeddings": ORIGINAL}
_PHI3 = _sized(tested.PHI3, **_TRAINED, num_key_value_heads=8, rope_scaling=_longrope(32), sliding_window=262144)
# 96 of 128 elements of a head rotate, as published.
_PHI4 = _sized(
    tested.PHI4,
    **_TRAINED,
    num_attention_heads=4,
    num_key_value_heads=2,
    rope_scaling=_longrope(48),
    sliding_window=262144,
)
_PHI3_4K = _sized(tested.PHI3_4K, num_key_value_heads=8, original_max_position_embeddings=CONTEXT)

_GEMMA3 = _sized(tested.GEMMA3, query_pre_attn_scalar=64, num_hidden_layers=7, sliding_window_pattern=6)
_GEMMA4 = _with_senses(
    "Gemma4ForConditionalGeneration",
    "gemma4",
    # A cap that the logits of random weights reach.
    _sized(tested.GEMMA4, global_head_dim=128, vocab_size_per_layer_input=VOCABULARY, final_logit_softcapping=6.0),
)

_MINISTRAL3_TEXT: Fields = tested.MINISTRAL3["text_config"]
_MINISTRAL3: Fields = {
    **tested.MINISTRAL3,
    "torch_dtype": "bfloat16",
    "text_config": _sized(
        _MINISTRAL3_TEXT,
        rope_parameters={**_MINISTRAL3_TEXT["rope_parameters"], "factor": CONTEXT / WINDOW},
    ),
}

# As many heads of values for one of keys as in the 4B.
_QWEN3_5 = _with_senses(
    "Qwen3_5ForConditionalGeneration",
    "qwen3_5",
    _sized(
        tested.QWEN3_5,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=64,
        linear_value_head_dim=64,
        mtp_num_hidden_layers=1,
    ),
)

_LFM2 = _sized(tested.LFM2, block_dim=512, conv_dim=512, block_ff_dim=1536, conv_L_cache=3)

_GRANITE: Fields = {"attention_bias": False, "mlp_bias": False, "logits_scaling": 2.0}
# What llama.cpp's converter asks of a model without a single Mamba too.
_MAMBA: Fields = {
    "mamba_d_conv": 4,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_expand": 2,
    "mamba_n_groups": 1,
    "mamba_n_heads": 16,
}

SPECIMENS: Mapping[str, Specimen] = {
    "llama3": Specimen("Llama 3.2", "llama3 rope over an original context of 64, tied head", _LLAMA, WINDOW),
    "phi3-4k": Specimen("Phi-3-mini-4k", "fused projections, a window of 64 on every layer", _PHI3_4K, WINDOW),
    "phi3": Specimen("Phi-3.5-mini", "fused projections, longrope from an original context of 256", _PHI3, ORIGINAL),
    "phi4": Specimen("Phi-4-mini", "as Phi-3.5, and three quarters of each head rotate", _PHI4, ORIGINAL),
    "gemma": Specimen(
        "Gemma 1",
        "norms that store their gain less one, an embedding times sqrt(hidden size)",
        _sized(tested.GEMMA),
        None,
    ),
    "gemma2": Specimen(
        "Gemma 2",
        "a window of 64 on every second layer, norms after the blocks, both softcaps",
        _sized(tested.GEMMA2, query_pre_attn_scalar=64),
        WINDOW,
    ),
    "gemma3": Specimen(
        "Gemma 3",
        "a window of 64 on five layers of six, two rope bases, linear rope scaling of the sixth, norms of q and k",
        _GEMMA3,
        WINDOW,
    ),
    "gemma4": Specimen(
        "Gemma 4 E2B",
        "windows of 64 with smaller heads, last layers that read the keys of others and have a wider MLP, inputs of "
        "each layer, a proportional rope, norms of v, a softcap on the logits",
        _GEMMA4,
        WINDOW,
    ),
    "qwen2": Specimen("Qwen2.5", "biases on q, k and v", _sized(tested.QWEN2, sliding_window=CONTEXT), None),
    "qwen3": Specimen(
        "Qwen3",
        "norms of q and k, heads wider than the hidden size",
        _sized(tested.QWEN3, head_dim=128, tie_word_embeddings=True),
        None,
    ),
    "qwen3.5": Specimen(
        "Qwen3.5 4B",
        "three gated delta rules with a convolution to one attention with a gate, two heads of values for one of keys, "
        "a quarter of each head rotates",
        _QWEN3_5,
        None,
    ),
    "smollm3": Specimen("SmolLM3", "no rope on every fourth layer", _sized(tested.SMOLLM3), None),
    "mistral": Specimen("Mistral 7B v0.1", "a window of 64 on every layer", _sized(tested.MISTRAL), WINDOW),
    "ministral": Specimen(
        "Ministral 8B",
        "a window of 64 on three layers of four, in transformers' class of its own for that",
        _sized(tested.MINISTRAL),
        WINDOW,
    ),
    "ministral3": Specimen(
        "Ministral 3",
        "YaRN from an original context of 64, past which queries grow with their position",
        _MINISTRAL3,
        WINDOW,
    ),
    "granite": Specimen(
        "Granite 3",
        "multipliers of the embedding, scores, residuals and logits",
        _sized(tested.GRANITE, **_GRANITE),
        None,
    ),
    "granite4": Specimen(
        "Granite 4 dense",
        "as Granite 3, in the class of its hybrids, gate and up in one tensor",
        _sized(tested.GRANITE4, **_GRANITE, **_MAMBA, shared_intermediate_size=1024),
        None,
    ),
    "olmo2": Specimen(
        "OLMo 2", "norms after the blocks alone, norms of q and k over all heads", _sized(tested.OLMO2), None
    ),
    "olmo3": Specimen(
        "OLMo 3",
        "as OLMo 2, a window of 64 on three layers of four, YaRN from an original context of 64 on the fourth",
        _sized(tested.OLMO3),
        WINDOW,
    ),
    "exaone4": Specimen(
        "EXAONE 4 1.2B",
        "norms after the blocks alone, norms of q and k, llama3 rope over an original context of 64",
        _sized(tested.EXAONE4_FULL),
        WINDOW,
    ),
    "ernie4.5": Specimen("ERNIE 4.5 0.3B", "a rope that turns neighbours", _sized(tested.ERNIE, use_bias=False), None),
    "helium": Specimen("Helium 1", "a rope that turns neighbours, a head of its own", _sized(tested.HELIUM), None),
    "hunyuan": Specimen(
        "HunYuan dense",
        "norms of q and k after their rotation, a dynamic rope with alpha",
        # llama.cpp's converter knows alpha for the published context alone.
        _sized(tested.HUNYUAN, max_position_embeddings=32 * 1024),
        None,
    ),
    "seed-oss": Specimen("Seed-OSS", "biases on q, k and v", _sized(tested.SEED_OSS), None),
    "stablelm": Specimen(
        "StableLM 2", "LayerNorms, biases on q, k and v, a quarter of each head rotates", _sized(tested.STABLELM), None
    ),
    "lfm2": Specimen("LFM2", "convolutions over three positions in four layers of six, norms of q and k", _LFM2, None),
    "lfm3": Specimen(
        "LFM3",
        "convolutions over seven positions in four layers of six, a window of 64 on one of two that attend, a gate on "
        "each head, norms on both sides of the blocks, a proportional rope",
        _sized(tested.LFM3),
        WINDOW,
    ),
}
