"""LFM2: which layers convolve, how wide the MLP is, and what the published sizes come to."""

from __future__ import annotations

from typing import Any

import pytest
from oracle_models import LFM2, LFM2_BIASED

from edgepack.bundle.decoder import Attention, Convolution
from edgepack.bundle.rope import Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families

# LiquidAI/LFM2-1.2B, of which transformers' Lfm2Config says what is not here.
LFM2_1_2B: dict[str, Any] = {
    "architectures": ["Lfm2ForCausalLM"],
    "model_type": "lfm2",
    "block_auto_adjust_ff_dim": True,
    "block_dim": 2048,
    "block_ff_dim": 12288,
    "block_ffn_dim_multiplier": 1.0,
    "block_multiple_of": 256,
    "conv_L_cache": 3,
    "conv_bias": False,
    "full_attn_idxs": [2, 5, 8, 10, 12, 14],
    "hidden_size": 2048,
    "max_position_embeddings": 128000,
    "norm_eps": 1e-5,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rope_theta": 1000000.0,
    "vocab_size": 65536,
}


def test_a_published_model_is_what_its_config_says() -> None:
    decoder = families.describe(LFM2_1_2B)
    assert decoder.n_parameters == 1_170_340_608
    assert [*decoder.attending] == [2, 5, 8, 10, 12, 14]
    assert decoder.attentions[0] == Attention(
        n_heads=32, n_kv_heads=8, head_dim=64, rope=Rope(1000000.0, 64), qk_norm="head"
    )
    assert {*decoder.convolving.values()} == {Convolution(length=3)}
    assert decoder.layer(0).mlp.size == 8192
    assert decoder.tied
    assert decoder.kv_values_per_token == 2 * 6 * 8 * 64
    assert decoder.states == dict.fromkeys((("conv", n) for n in (0, 1, 3, 4, 6, 7, 9, 11, 13, 15)), (2, 2048))


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"block_ff_dim": 6656, "block_multiple_of": 256}, 4608),
        ({"block_ff_dim": 6656, "block_multiple_of": 256, "block_ffn_dim_multiplier": 1.5}, 6656),
        ({"block_ff_dim": 6656, "block_auto_adjust_ff_dim": False}, 6656),
        ({"block_ff_dim": None, "intermediate_size": 96, "block_multiple_of": 1}, 64),
    ],
)
def test_the_width_of_the_mlp_is_adjusted_where_it_is_not_final(fields: dict[str, Any], size: int) -> None:
    assert families.describe({**LFM2, **fields}).layer(0).mlp.size == size


def test_layers_are_listed_by_kind_or_by_number() -> None:
    numbered = {key: value for key, value in LFM2.items() if key != "layer_types"} | {"full_attn_idxs": [2, 4]}
    assert families.describe(numbered) == families.describe(LFM2)
    for listed in ([6], ["2"], 2):
        with pytest.raises(SourceError, match="full_attn_idxs must list layers from 0 to 5"):
            families.describe({**numbered, "full_attn_idxs": listed})


def test_two_names_of_a_fact_must_agree() -> None:
    with pytest.raises(SourceError, match="block_ff_dim says 270, intermediate_size says 271"):
        families.describe({**LFM2, "intermediate_size": 271})
    with pytest.raises(SourceError, match="tie_word_embeddings says False, tie_embedding says True"):
        families.describe({**LFM2_BIASED, "tie_embedding": True})


def test_a_model_without_any_attention_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="no layer is an attention"):
        families.describe({**LFM2, "layer_types": ["conv"] * 6})
