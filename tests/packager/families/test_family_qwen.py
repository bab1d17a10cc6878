"""Qwen2 and Qwen3: biases, norms of q and k, and windows from a layer on."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Positions, described
from models import make_model
from oracle_models import QWEN2, QWEN2_WINDOW, QWEN3

from edgepack.bundle.rope import Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

PLAIN = Positions(Rope(1000000.0, 32))
WINDOWED = Positions(Rope(1000000.0, 32), window=24)


@pytest.mark.shared
def test_qwen_2_5(shared: Path) -> None:
    decoder = described(json.loads((shared / "configs/Qwen2.5-0.5B-Instruct.json").read_text()))
    assert decoder.n_parameters == 494_032_768
    assert decoder.pattern == (Positions(Rope(1000000.0, 64)),)
    assert (decoder.qkv_bias, decoder.output_bias, decoder.mlp_bias, decoder.tied) == (True, False, False, True)


@pytest.mark.shared
@pytest.mark.parametrize(("name", "parameters"), [("Qwen3-0.6B", 596_049_920), ("Qwen3-1.7B", 1_720_574_976)])
def test_qwen_3(shared: Path, name: str, parameters: int) -> None:
    decoder = described(json.loads((shared / f"configs/{name}.json").read_text()))
    assert (decoder.n_parameters, decoder.head_dim, decoder.context) == (parameters, 128, 40960)
    assert (decoder.qkv_bias, decoder.qk_norm, decoder.norms) == (False, "head", "before")


def test_absent_fields_take_the_defaults_of_the_architectures() -> None:
    small = {key: value for key, value in QWEN3.items() if key not in ("head_dim", "tie_word_embeddings", "rope_theta")}
    decoder = described(small)
    assert (decoder.head_dim, decoder.tied, decoder.ropes[0].theta) == (128, False, 10000.0)
    assert described({**QWEN3, "head_dim": None}).head_dim == 128
    small = {key: value for key, value in QWEN2.items() if key not in ("tie_word_embeddings", "use_sliding_window")}
    decoder = described(small)
    assert (decoder.head_dim, decoder.tied, decoder.pattern) == (32, False, (PLAIN,))


def test_a_window_that_is_not_in_use_is_none() -> None:
    assert described({**QWEN2, "sliding_window": 24}).pattern == (PLAIN,)
    assert described({**QWEN2_WINDOW, "sliding_window": None}).pattern == (PLAIN,)


@pytest.mark.parametrize(
    ("first", "pattern"),
    [
        (0, (WINDOWED,)),
        (1, (PLAIN, WINDOWED, WINDOWED, WINDOWED)),
        (2, (PLAIN, PLAIN, WINDOWED, WINDOWED)),
        (4, (PLAIN,)),
        (None, (PLAIN,)),
    ],
)
def test_windows_begin_at_a_layer(first: int | None, pattern: tuple[Positions, ...]) -> None:
    assert described({**QWEN2_WINDOW, "max_window_layers": first}).pattern == pattern


def test_stated_layer_types_come_before_the_rule() -> None:
    config = {**QWEN2_WINDOW, "layer_types": ["full_attention", "sliding_attention"] * 2}
    assert described(config).pattern == (PLAIN, WINDOWED)


@pytest.mark.parametrize("config", [QWEN2, QWEN3])
def test_both_spellings_give_one_decoder(config: Mapping[str, Any]) -> None:
    section = {"rope_type": "default", "rope_theta": 1000000.0}
    new = {key: value for key, value in config.items() if key not in ("rope_theta", "rope_scaling", "torch_dtype")}
    assert described({**new, "rope_parameters": section}) == described(config)
    assert described({**config, "rope_parameters": section}) == described(config)


def test_qwen_2_has_a_bias_on_q_k_and_v_only(tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, QWEN2, tokenizer=False)) as checkpoint:
        weights = families.open_model(checkpoint)
        names = dict(weights.decoder.tensors())
        biases = {name.split(".", 2)[2] for name in names if name.endswith(".bias")}
        assert biases == {"attention.q.bias", "attention.k.bias", "attention.v.bias"}
        stored = checkpoint.rows("model.layers.2.self_attn.k_proj.bias", 0, 64)
        assert np.array_equal(weights.rows("layers.2.attention.k.bias", 0, 64), stored)


def test_qwen_3_norms_each_head_of_q_and_k(tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, QWEN3, tokenizer=False)) as checkpoint:
        weights = families.open_model(checkpoint)
        for part in ("q", "k"):
            stored = checkpoint.rows(f"model.layers.3.self_attn.{part}_norm.weight", 0, 48)
            assert np.array_equal(weights.rows(f"layers.3.attention.{part}_norm", 0, 48), stored)


def test_qwen_3_may_have_biases_on_all_of_attention() -> None:
    names = dict(described({**QWEN3, "attention_bias": True}).tensors())
    assert {"layers.0.attention.q.bias", "layers.0.attention.o.bias"} <= names.keys()


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({**QWEN2, "use_sliding_window": 1}, "use_sliding_window must be true or false"),
    ({**QWEN2_WINDOW, "sliding_window": -1}, "sliding_window must be a whole number above 0"),
    ({**QWEN2_WINDOW, "max_window_layers": -1}, "max_window_layers must be a whole number above -1"),
    ({**QWEN2_WINDOW, "max_window_layers": "2"}, "max_window_layers must be"),
    ({**QWEN2, "layer_types": ["sliding_attention"] * 4}, "layer_types[0] is 'sliding_attention'; the other fields"),
    ({**QWEN3, "attention_bias": "no"}, "attention_bias must be true or false"),
    ({**QWEN2, "tie_word_embeddings": 1}, "tie_word_embeddings must be true or false"),
    (
        {**QWEN3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "rope_parameters.rope_theta says 10000.0, rope_theta says 1000000.0",
    ),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_config_is_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        described(config)
    assert not isinstance(raised.value, UnsupportedModelError)


UNSUPPORTED: list[tuple[Mapping[str, Any], str]] = [
    ({**QWEN2, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({**QWEN3, "num_experts": 128}, "num_experts: a mixture of experts"),
    ({**QWEN2, "rope_scaling": {"type": "longrope"}}, "rope_scaling.type is 'longrope'"),
    ({**QWEN3, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
]


@pytest.mark.parametrize(("config", "message"), UNSUPPORTED)
def test_what_is_not_built_is_refused_by_field(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        described(config)
