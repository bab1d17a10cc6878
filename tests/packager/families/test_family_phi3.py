"""The Phi-3 family: fused tensors, longrope at every context, partial rotation and the window."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Positions, described
from models import make_model
from oracle_models import LONGROPE, PHI3, PHI3_4K, PHI3_V5, PHI4

from edgepack.bundle.rope import LongRopeScaling, Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

# sqrt(1 + ln(512 / 64) / ln 64), which is sqrt(1.5).
MAGNITUDE = math.sqrt(1.5)


def scaling(config: Mapping[str, Any], context: int | None = None) -> LongRopeScaling:
    found = described(config, context).ropes[0].scaling
    assert isinstance(found, LongRopeScaling)
    return found


@pytest.mark.shared
def test_phi_3_5_mini(shared: Path) -> None:
    config = json.loads((shared / "configs/Phi-3.5-mini-instruct.json").read_text())
    decoder = described(config)
    assert decoder.n_parameters == 3_821_079_552
    assert (decoder.context, decoder.trained_context, decoder.tied, decoder.head_dim) == (4096, 131072, False, 96)
    assert decoder.windows == ()
    assert round(decoder.ropes[0].magnitude, 7) == 1.1902381
    assert scaling(config).factors == tuple(config["rope_scaling"]["short_factor"])
    assert scaling(config, 131072).factors == tuple(config["rope_scaling"]["long_factor"])


@pytest.mark.shared
def test_phi_4_mini(shared: Path) -> None:
    config = json.loads((shared / "configs/Phi-4-mini-reasoning.json").read_text())
    decoder = described(config)
    assert decoder.n_parameters == 3_836_021_760
    assert (decoder.head_dim, decoder.ropes[0].dim, decoder.n_kv_heads, decoder.tied) == (128, 96, 8, True)
    # Its two lists of factors are the same, so that no context has to be chosen.
    assert decoder.context == 131072


@pytest.mark.parametrize(
    ("asked", "context", "list"),
    [(None, 64, "short"), (1, 1, "short"), (64, 64, "short"), (65, 65, "long"), (512, 512, "long")],
)
def test_the_context_decides_the_factors_of_all_positions(asked: int | None, context: int, list: str) -> None:
    decoder = described(PHI3, asked)
    assert (decoder.context, decoder.trained_context) == (context, 512)
    assert scaling(PHI3, asked) == LongRopeScaling(tuple(LONGROPE[f"{list}_factor"]), MAGNITUDE, 64)


def test_a_part_of_each_head_rotates() -> None:
    decoder = described(PHI4)
    assert (decoder.head_dim, decoder.ropes[0].dim) == (32, 24)
    assert len(scaling(PHI4).factors) == 12


def longrope(**fields: object) -> dict[str, Any]:
    return {**PHI3, "rope_scaling": {**LONGROPE, **fields}}


def test_the_magnitude_is_stated_or_follows_from_the_stretch() -> None:
    assert scaling(longrope(attention_factor=1.25)).magnitude == 1.25
    assert scaling(longrope(factor=64.0)).magnitude == math.sqrt(2)
    assert scaling(longrope(factor=1.0)).magnitude == 1.0
    # Cutting the context does not change what the model was trained with.
    assert scaling(PHI3, 100).magnitude == MAGNITUDE


def test_an_original_context_beyond_the_trained_one_stretches_nothing() -> None:
    config = {**PHI3, "original_max_position_embeddings": 1024}
    assert scaling(config) == LongRopeScaling(tuple(LONGROPE["short_factor"]), 1.0, 1024)
    assert described(config).context == 512


V5 = PHI3_V5["rope_parameters"]
IN_SECTION = {key: value for key, value in PHI3_V5.items() if key != "original_max_position_embeddings"}

SPELLINGS: Mapping[str, Mapping[str, Any]] = {
    "version 5": PHI3_V5,
    "version 5, the original context in the section": IN_SECTION,
    "version 5, the original context at the top": {
        **PHI3_V5,
        "rope_parameters": {key: value for key, value in V5.items() if key != "original_max_position_embeddings"},
    },
    "both": {**PHI3, **PHI3_V5},
    "the old name": longrope(type="su"),
    "both names of the type": longrope(rope_type="longrope"),
    "the part that rotates is all": {**PHI3, "partial_rotary_factor": 1.0},
    "no theta": {key: value for key, value in PHI3.items() if key != "rope_theta"},
    "no window": {**PHI3, "sliding_window": None},
    "a window as long as the context": {**PHI3, "sliding_window": 512},
}


@pytest.mark.parametrize("name", SPELLINGS)
@pytest.mark.parametrize("context", [None, 64, 512])
def test_every_spelling_of_a_model_gives_one_decoder(name: str, context: int | None) -> None:
    assert described(SPELLINGS[name], context) == described(PHI3, context)


def test_the_part_that_rotates_in_the_spelling_of_version_5() -> None:
    config = {key: value for key, value in PHI4.items() if key not in ("rope_scaling", "partial_rotary_factor")}
    section = {**PHI4["rope_scaling"], "rope_type": "longrope", "partial_rotary_factor": 0.75}
    assert described({**config, "rope_parameters": section}) == described(PHI4)


def test_a_window_shorter_than_the_context_is_on_every_layer() -> None:
    assert described(PHI3_4K).pattern == (Positions(Rope(10000.0, 32), window=24),)
    assert described(PHI3_4K, 25).windows == (24,)
    assert described(PHI3_4K, 24).pattern == (Positions(Rope(10000.0, 32)),)


def test_q_k_and_v_and_gate_and_up_are_parts_of_one_tensor(tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, PHI4, tokenizer=False)) as checkpoint:
        weights = families.open_model(checkpoint)
        attention, mlp = "model.layers.1.self_attn.qkv_proj.weight", "model.layers.1.mlp.gate_up_proj.weight"
        # Four heads of 32 for q, two for k, two for v; 192 rows for gate, 192 for up.
        for canonical, stored, first, rows in [
            ("attention.q", attention, 0, 128),
            ("attention.k", attention, 128, 64),
            ("attention.v", attention, 192, 64),
            ("mlp.gate", mlp, 0, 192),
            ("mlp.up", mlp, 192, 192),
        ]:
            found = weights.rows(f"layers.1.{canonical}", 0, rows)
            assert np.array_equal(found, checkpoint.rows(stored, first, first + rows))
            assert np.array_equal(weights.rows(f"layers.1.{canonical}", 5, 7), found[5:7])


def test_a_fused_tensor_of_another_height_is_refused(tmp_path: Path) -> None:
    folder = make_model(tmp_path, PHI4, tokenizer=False, config={"num_key_value_heads": 4})
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=re.escape("shape [256, 128]; by")):
        families.open_model(checkpoint)


WRONG: list[tuple[Mapping[str, Any], str]] = [
    (longrope(short_factor=[1.0] * 15), "rope_scaling.short_factor must list 16 numbers"),
    (longrope(long_factor=None), "rope_scaling.long_factor must list 16 numbers"),
    (longrope(long_factor=[1.0] * 15 + [0.0]), "rope_scaling.long_factor[15] must be a number above 0"),
    (longrope(short_factor=["1"] * 16), "rope_scaling.short_factor[0] must be a number above 0"),
    (longrope(attention_factor=0), "rope_scaling.attention_factor must be"),
    (longrope(factor="8"), "rope_scaling.factor must be"),
    (longrope(original_max_position_embeddings=32), "says 32, original_max_position_embeddings says 64"),
    ({**PHI3, "original_max_position_embeddings": None}, "rope_scaling.original_max_position_embeddings is missing"),
    ({**PHI3, "original_max_position_embeddings": "64"}, "original_max_position_embeddings must be"),
    ({**PHI3_V5, "rope_scaling": {**LONGROPE, "long_factor": [2.0] * 16}}, "rope_parameters says"),
    ({**PHI3_V5, "rope_theta": 5e5}, "rope_parameters.rope_theta says 10000.0, rope_theta says 500000.0"),
    (
        {**PHI3_V5, "partial_rotary_factor": 0.5},
        "rope_parameters.partial_rotary_factor says 1.0, partial_rotary_factor says 0.5",
    ),
    ({**PHI4, "partial_rotary_factor": 0.7}, "rope_scaling.short_factor must list 11 numbers"),
    ({**PHI4, "partial_rotary_factor": 0.8}, "partial_rotary_factor (0.8) must leave an even part of the 32"),
    ({**PHI4, "partial_rotary_factor": 1.5}, "partial_rotary_factor (1.5) must leave an even part"),
    ({**PHI4, "partial_rotary_factor": 0}, "partial_rotary_factor must be a number above 0"),
    ({**PHI3_4K, "sliding_window": 0}, "sliding_window must be a whole number above 0"),
    ({**PHI3_4K, "sliding_window": 24.0}, "sliding_window must be a whole number above 0"),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_config_is_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        described(config)
    assert not isinstance(raised.value, UnsupportedModelError)


UNSUPPORTED: list[tuple[Mapping[str, Any], str]] = [
    (longrope(type="yarn"), "rope_scaling.type is 'yarn'"),
    (longrope(type="linear"), "rope_scaling.type is 'linear'"),
    (longrope(rope_type="default"), "rope_scaling.long_factor has no meaning for the rope type default"),
    (longrope(short_mscale=1.2), "rope_scaling.short_mscale has no meaning for the rope type longrope"),
    ({**PHI3, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({**PHI3, "attention_bias": True}, "attention_bias is True"),
    ({**PHI4, "mlp_bias": True}, "mlp_bias is True"),
    ({**PHI4, "lm_head_bias": True}, "lm_head_bias is True"),
    ({**PHI4, "full_attn_mod": 2}, "full_attn_mod is 2"),
    ({**PHI4, "interpolate_factor": 4}, "interpolate_factor is 4"),
    ({**PHI3, "img_processor": {"name": "clip"}}, "img_processor: a vision model"),
]


@pytest.mark.parametrize(("config", "message"), UNSUPPORTED)
def test_what_is_not_built_is_refused_by_field(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        described(config)
