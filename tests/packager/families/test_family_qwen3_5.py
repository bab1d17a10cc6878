"""Qwen3.5: what its config.json describes, and where its tensors are, alone and in a model that sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import draw, make_model, shapes, write_safetensors
from oracle_models import QWEN3_5
from text_side import write_json

from edgepack.bundle.decoder import Attention, Delta
from edgepack.bundle.rope import Rope
from edgepack.errors import UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

# Qwen/Qwen3.5-0.8B, of which transformers' Qwen3_5TextConfig says what is not here.
QWEN3_5_0_8B: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "tie_word_embeddings": True,
    "text_config": {
        "model_type": "qwen3_5_text",
        "attn_output_gate": True,
        "full_attention_interval": 4,
        "head_dim": 256,
        "hidden_size": 1024,
        "intermediate_size": 3584,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 16,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 262144,
        "mtp_num_hidden_layers": 1,
        "num_attention_heads": 8,
        "num_hidden_layers": 24,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": [11, 11, 10],
            "partial_rotary_factor": 0.25,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "vocab_size": 248320,
    },
}


def test_a_published_model_is_what_its_config_says() -> None:
    decoder = families.describe(QWEN3_5_0_8B)
    assert decoder.n_parameters == 752_393_024
    assert decoder.pattern == (0, 0, 0, 1)
    assert decoder.attentions[0] == Attention(
        n_heads=8, n_kv_heads=2, head_dim=256, rope=Rope(1e7, 64), qk_norm="head", gated=True
    )
    assert {*decoder.correcting.values()} == {
        Delta(n_key_heads=16, n_value_heads=16, key_dim=128, value_dim=128, length=4)
    }
    assert decoder.states["conv", 0] == (3, 6144)
    assert decoder.states["delta", 0] == (16, 128, 128)
    assert len(decoder.states) == 2 * 18


def test_a_quarter_of_a_head_rotates_where_nothing_is_said() -> None:
    config = {**QWEN3_5, "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
    assert families.describe(config).ropes == (Rope(10000.0, 16),)
    whole = {**QWEN3_5, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 1.0}}
    assert families.describe(whole).ropes == (Rope(10000.0, 64),)


def test_biases_are_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="attention_bias is True"):
        families.describe({**QWEN3_5, "attention_bias": True})


def test_q_and_its_gate_lie_by_turns_in_a_checkpoint(tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, QWEN3_5)) as checkpoint:
        weights = families.open_model(checkpoint)
        heads = checkpoint.rows("model.layers.3.self_attn.q_proj.weight", 0, 512).reshape(4, 2, 64, 128)
        for part, name in enumerate(("q", "gate")):
            whole = heads[:, part].reshape(256, 128)
            assert np.array_equal(weights.rows(f"layers.3.attention.{name}", 0, 256), whole)
            assert np.array_equal(weights.rows(f"layers.3.attention.{name}", 70, 131), whole[70:131])


@pytest.mark.parametrize("prefix", ["model.language_model.", "language_model.model."])
def test_the_text_of_a_model_that_sees_is_the_same_model(prefix: str, tmp_path: Path) -> None:
    alone, seeing = make_model(tmp_path / "alone", QWEN3_5), tmp_path / "seeing"
    tensors = {name: draw(name, shape, 0, 1.0, QWEN3_5) for name, shape in shapes(QWEN3_5).items()}
    tensors = {name.replace("model.", prefix, 1): tensor for name, tensor in tensors.items()}
    others = ("model.visual.blocks.0.attn.qkv.weight", "mtp.layers.0.self_attn.q_proj.weight", "mtp.fc.weight")
    seeing.mkdir()
    write_safetensors(seeing, tensors | dict.fromkeys(others, np.ones((4, 4), np.float32)), "f32")
    text = {key: value for key, value in QWEN3_5.items() if key != "architectures"}
    config = {"architectures": ["Qwen3_5ForConditionalGeneration"], "model_type": "qwen3_5", "text_config": text}
    write_json(seeing / "config.json", config)
    with open_checkpoint(alone) as one, open_checkpoint(seeing) as other:
        weights, again = families.open_model(one), families.open_model(other)
        assert weights.decoder == again.decoder
        for name, shape in weights.decoder.tensors():
            assert np.array_equal(weights.rows(name, 0, shape[0]), again.rows(name, 0, shape[0])), name
