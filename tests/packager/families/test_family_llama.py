"""The Llama family: config.json to decoder, checkpoint to canonical tensors."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import described
from models import LINEAR, LLAMA3, make_llama, write_safetensors

from edgepack.bundle.rope import LinearScaling, Llama3Scaling, Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 160,
    "vocab_size": 384,
    "max_position_embeddings": 512,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
}

LLAMA3_SCALING = Llama3Scaling(8.0, 1.0, 4.0, 64)


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in CONFIG.items() if name not in names}


@pytest.mark.shared
def test_llama_3_2(shared: Path) -> None:
    decoder = described(json.loads((shared / "configs/Llama-3.2-1B-Instruct.json").read_text()))
    assert decoder.n_parameters == 1_235_814_400
    assert decoder.ropes[0] == Rope(theta=500000.0, dim=64, scaling=Llama3Scaling(32.0, 1.0, 4.0, 8192))
    assert (decoder.n_layers, decoder.kv_size, decoder.context, decoder.tied) == (16, 512, 131072, True)


@pytest.mark.shared
def test_smollm2(shared: Path) -> None:
    decoder = described(json.loads((shared / "configs/SmolLM2-135M.json").read_text()))
    assert decoder.n_parameters == 134_515_008
    assert decoder.ropes[0] == Rope(theta=100000.0, dim=64)
    assert decoder.head_dim == 64


def test_absent_fields_take_the_defaults_of_the_architecture() -> None:
    decoder = described(without("num_key_value_heads", "hidden_act"))
    assert decoder.n_kv_heads == decoder.n_heads == 4
    assert decoder.head_dim == 16
    assert decoder.ropes[0] == Rope(theta=10000.0, dim=16)
    assert [decoder.tied, decoder.qkv_bias, decoder.output_bias, decoder.mlp_bias] == [False] * 4
    assert described(CONFIG | {"head_dim": None}).head_dim == 16


def test_an_explicit_head_dim_is_not_derived() -> None:
    decoder = described(CONFIG | {"head_dim": 32, "num_attention_heads": 6, "num_key_value_heads": 3})
    assert (decoder.head_dim, decoder.q_size, decoder.kv_size, decoder.ropes[0].dim) == (32, 192, 96, 32)


def test_biases() -> None:
    names = dict(described(CONFIG | {"attention_bias": True, "mlp_bias": True}).tensors())
    assert names["layers.1.attention.k.bias"] == (32,)
    assert names["layers.1.attention.o.bias"] == (64,)
    assert names["layers.1.mlp.down.bias"] == (64,)


SPELLINGS: list[tuple[Mapping[str, Any], float, object]] = [
    ({}, 10000.0, None),
    ({"rope_theta": 500000, "rope_scaling": None}, 500000.0, None),
    ({"rope_theta": 500000.0, "rope_scaling": LLAMA3}, 500000.0, LLAMA3_SCALING),
    ({"rope_scaling": {"type": "linear", "factor": 4}}, 10000.0, LinearScaling(4.0)),
    ({"rope_scaling": {"type": "linear", "rope_type": "linear", "factor": 4.0}}, 10000.0, LinearScaling(4.0)),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, 500000.0, None),
    ({"rope_parameters": {**LLAMA3, "rope_theta": 500000.0}}, 500000.0, LLAMA3_SCALING),
    ({"rope_parameters": {**LINEAR, "partial_rotary_factor": 1.0}, "rope_theta": 1e6}, 1e6, LinearScaling(4.0)),
    (
        {"rope_theta": 5e5, "rope_scaling": LLAMA3, "rope_parameters": {**LLAMA3, "rope_theta": 5e5}},
        5e5,
        LLAMA3_SCALING,
    ),
]


@pytest.mark.parametrize(("spelling", "theta", "scaling"), SPELLINGS)
def test_rope_in_every_spelling(spelling: Mapping[str, Any], theta: float, scaling: Any) -> None:
    assert described(CONFIG | spelling).ropes[0] == Rope(theta=theta, dim=16, scaling=scaling)


def test_both_spellings_of_a_model_give_one_decoder(tmp_path: Path) -> None:
    old = make_llama(tmp_path / "v4", spelling="v4", rope=LLAMA3, theta=500000.0)
    new = make_llama(tmp_path / "v5", spelling="v5", rope=LLAMA3, theta=500000.0)
    assert (old / "config.json").read_bytes() != (new / "config.json").read_bytes()
    with open_checkpoint(old) as first, open_checkpoint(new) as second:
        assert families.open_model(first).decoder == families.open_model(second).decoder


UNSUPPORTED: list[tuple[Mapping[str, Any], str]] = [
    (without("architectures") | {"model_type": "mamba"}, "names no architecture (model_type 'mamba')"),
    (CONFIG | {"architectures": ["LlamaForCausalLM", "Other"]}, "names LlamaForCausalLM, Other"),
    (CONFIG | {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    (CONFIG | {"rope_interleaved": True}, "rope_interleaved is True"),
    (CONFIG | {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    (CONFIG | {"rope_parameters": {**LINEAR, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    (CONFIG | {"rope_scaling": {"type": "longrope", "factor": 2.0}}, "rope_scaling.type is 'longrope'"),
    (CONFIG | {"rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope_scaling.rope_type is 'ntk'"),
    (CONFIG | {"rope_parameters": {"rope_type": "longrope"}}, "rope_parameters.rope_type is 'longrope'"),
    (CONFIG | {"rope_scaling": {**LINEAR, "short_factor": [1.0]}}, "rope_scaling.short_factor has no meaning"),
]


@pytest.mark.parametrize(("config", "message"), UNSUPPORTED)
def test_what_is_not_built_is_refused_by_name(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        described(config)


def test_an_unknown_architecture_is_told_what_is_built() -> None:
    with pytest.raises(UnsupportedModelError, match="MambaForCausalLM") as raised:
        described({"architectures": ["MambaForCausalLM"]})
    assert raised.value.hint is not None
    assert raised.value.hint.startswith("It builds: Ernie4_5ForCausalLM, ")
    assert "LlamaForCausalLM, " in raised.value.hint


REQUIRED = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "rms_norm_eps"),
)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_field_is_named(name: str) -> None:
    with pytest.raises(SourceError, match=f"the field {name} is missing"):
        described(without(name))


@pytest.mark.parametrize("name", [*REQUIRED, "num_key_value_heads", "head_dim", "rope_theta"])
@pytest.mark.parametrize("value", [0, -1, "64", True, [64], float("nan"), float("inf")])
def test_a_wrong_number_is_named(name: str, value: object) -> None:
    with pytest.raises(SourceError, match=f"{name} must be") as raised:
        described(CONFIG | {name: value})
    assert raised.value.hint


WRONG: list[tuple[Mapping[str, Any], str]] = [
    (CONFIG | {"architectures": "LlamaForCausalLM"}, "architectures must be a list"),
    (CONFIG | {"num_key_value_heads": 3}, "num_attention_heads (4) is no multiple of num_key_value_heads (3)"),
    (CONFIG | {"hidden_size": 66}, "without head_dim, hidden_size (66)"),
    (CONFIG | {"head_dim": 15}, "head_dim must be even"),
    (CONFIG | {"tie_word_embeddings": "yes"}, "tie_word_embeddings must be true or false"),
    (CONFIG | {"attention_bias": 1}, "attention_bias must be true or false"),
    (CONFIG | {"rope_scaling": 4.0}, "rope_scaling must be an object"),
    (CONFIG | {"rope_scaling": {"factor": 4.0}}, "rope_scaling has no rope_type"),
    (CONFIG | {"rope_scaling": {"rope_type": "linear"}}, "the field rope_scaling.factor is missing"),
    (CONFIG | {"rope_scaling": {**LLAMA3, "low_freq_factor": 4.0}}, "rope_scaling.high_freq_factor (4) must exceed"),
    (
        CONFIG | {"rope_parameters": {**LLAMA3, "original_max_position_embeddings": 0}},
        "rope_parameters.original_max_position_embeddings must be",
    ),
    (
        CONFIG | {"rope_theta": 1e4, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
        "rope_parameters.rope_theta says 500000.0, rope_theta says 10000.0",
    ),
    (
        CONFIG | {"rope_scaling": LLAMA3, "rope_parameters": {"rope_type": "default"}},
        "rope_parameters says None",
    ),
    (
        CONFIG | {"rope_scaling": {"type": "linear", "rope_type": "llama3", "factor": 4.0}},
        "the field rope_scaling.low_freq_factor is missing",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_config_is_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        described(config)
    assert not isinstance(raised.value, UnsupportedModelError)


def test_canonical_tensors_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, tied=False, attention_bias=True, mlp_bias=True, shards=2)
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint)
        assert weights.dtype == "bf16"
        assert len(dict(weights.decoder.tensors())) == len(checkpoint.tensors)
        for canonical, stored in {
            "embedding": "model.embed_tokens.weight",
            "layers.0.attention.norm": "model.layers.0.input_layernorm.weight",
            "layers.1.attention.q": "model.layers.1.self_attn.q_proj.weight",
            "layers.1.attention.v.bias": "model.layers.1.self_attn.v_proj.bias",
            "layers.0.mlp.norm": "model.layers.0.post_attention_layernorm.weight",
            "layers.0.mlp.gate": "model.layers.0.mlp.gate_proj.weight",
            "layers.1.mlp.down.bias": "model.layers.1.mlp.down_proj.bias",
            "norm": "model.norm.weight",
            "head": "lm_head.weight",
        }.items():
            assert np.array_equal(weights.rows(canonical, 3, 9), checkpoint.rows(stored, 3, 9))


def stored(folder: Path) -> dict[str, Any]:
    with open_checkpoint(folder) as checkpoint:
        return {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}


def test_known_buffers_are_ignored(tmp_path: Path) -> None:
    tensors = stored(make_llama(tmp_path))
    tensors["model.layers.1.self_attn.rotary_emb.inv_freq"] = np.ones(8, np.float32)
    write_safetensors(tmp_path, tensors, "bf16")
    with open_checkpoint(tmp_path) as checkpoint:
        assert families.open_model(checkpoint).decoder.n_layers == 2


TENSORS: list[tuple[dict[str, Any], str]] = [
    ({"tie_word_embeddings": False}, "lacks the tensor lm_head.weight"),
    ({"num_hidden_layers": 3}, "lacks the tensors model.layers.2.input_layernorm.weight, "),
    ({"num_hidden_layers": 1}, "has the tensors model.layers.1.input_layernorm.weight, "),
    ({"mlp_bias": True}, "and 3 more"),
    ({"vocab_size": 400}, "model.embed_tokens.weight has the shape [384, 64]; by config.json it must have [400, 64]"),
    ({"num_key_value_heads": 4}, "self_attn.k_proj.weight has the shape [32, 64]"),
]


@pytest.mark.parametrize(("config", "message"), TENSORS)
def test_a_config_that_does_not_fit_the_tensors_is_refused(
    config: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = make_llama(tmp_path, config=config)
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=re.escape(message)):
        families.open_model(checkpoint)


def test_a_tied_model_may_repeat_its_embedding_but_not_change_it(tmp_path: Path) -> None:
    tensors = stored(make_llama(tmp_path))
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    write_safetensors(tmp_path, tensors, "bf16")
    with open_checkpoint(tmp_path) as checkpoint:
        assert "head" not in dict(families.open_model(checkpoint).decoder.tensors())

    tensors["lm_head.weight"][383, 63] += 1
    write_safetensors(tmp_path, tensors, "bf16")
    with open_checkpoint(tmp_path) as checkpoint, pytest.raises(SourceError, match=r"ties lm_head.weight to"):
        families.open_model(checkpoint)


def test_mixed_types_are_reported_as_the_one_that_holds_all(tmp_path: Path) -> None:
    folder = make_llama(tmp_path, dtype="bf16", shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    # Any two bytes are a value of either type.
    shard.write_bytes(shard.read_bytes().replace(b'"dtype":"BF16"', b'"dtype":"F16" '))
    with open_checkpoint(folder) as checkpoint:
        assert families.open_model(checkpoint).dtype == "f32"


def test_a_tensor_of_integers_is_refused_by_name(tmp_path: Path) -> None:
    path = make_llama(tmp_path) / "model.safetensors"
    path.write_bytes(path.read_bytes().replace(b'"dtype":"BF16"', b'"dtype":"I16" ', 1))
    with (
        open_checkpoint(tmp_path) as checkpoint,
        pytest.raises(UnsupportedModelError, match=r"embed_tokens.weight .* I16"),
    ):
        families.open_model(checkpoint)
