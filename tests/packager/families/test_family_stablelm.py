"""StableLM: what config.json leaves to its class, the published sizes, and what of the family is not built."""

from __future__ import annotations

from typing import Any

import pytest
from oracle_models import STABLELM

from edgepack.bundle.decoder import Attention
from edgepack.bundle.rope import Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families

# stabilityai/stablelm-2-1_6b.
STABLELM_2_1_6B: dict[str, Any] = {
    "architectures": ["StableLmForCausalLM"],
    "model_type": "stablelm",
    "hidden_act": "silu",
    "hidden_dropout": 0.0,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "num_attention_heads": 32,
    "num_hidden_layers": 24,
    "num_key_value_heads": 32,
    "partial_rotary_factor": 0.25,
    "qk_layernorm": False,
    "rope_scaling": None,
    "rope_theta": 10000,
    "tie_word_embeddings": False,
    "use_parallel_residual": False,
    "use_qkv_bias": True,
    "vocab_size": 100352,
}


def test_a_published_model_is_what_its_config_says() -> None:
    decoder = families.describe(STABLELM_2_1_6B)
    assert decoder.n_parameters == 1_644_515_328
    assert decoder.attentions[0] == Attention(
        n_heads=32, n_kv_heads=32, head_dim=64, rope=Rope(10000.0, 16), qkv_bias=True
    )
    assert (decoder.norm, decoder.norm_eps, decoder.tied) == ("layer", 1e-5, False)
    biases = [name for name, _ in decoder.tensors() if name.endswith("norm.bias")]
    assert biases == [f"layers.{n}.{block}.norm.bias" for n in range(24) for block in ("attention", "mlp")] + [
        "norm.bias"
    ]


def without(*names: str) -> dict[str, Any]:
    return {key: value for key, value in STABLELM.items() if key not in names}


def test_what_is_left_out_is_as_in_the_class() -> None:
    found = families.describe(without("partial_rotary_factor", "use_qkv_bias", "tie_word_embeddings", "rope_theta"))
    assert found.attentions[0].rope == Rope(10000.0, 8)
    assert (found.attentions[0].qkv_bias, found.tied) == (False, False)
    many = {**without("num_key_value_heads"), "num_attention_heads": 64, "hidden_size": 2048}
    assert families.describe(many).attentions[0].n_kv_heads == 32
    with pytest.raises(SourceError, match=r"num_attention_heads \(4\) is no multiple of num_key_value_heads \(32\)"):
        families.describe(without("num_key_value_heads"))


@pytest.mark.parametrize(
    ("fields", "dim"),
    [
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}, 8),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5}}, 16),
        ({"partial_rotary_factor": 1.0}, 32),
        ({"partial_rotary_factor": None}, 8),
    ],
)
def test_a_quarter_turns_where_no_spelling_says_another_part(fields: dict[str, Any], dim: int) -> None:
    config = {**without("partial_rotary_factor"), **fields}
    assert families.describe(config).attentions[0].rope == Rope(10000.0, dim)


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"qk_layernorm": True}, "qk_layernorm is True"),
        ({"use_parallel_residual": True}, "use_parallel_residual is True"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"head_dim": 64}, "head_dim is 64; edgepack builds heads that fill the hidden size"),
        ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "rope_scaling.rope_type is 'linear'"),
    ],
)
def test_what_is_not_built_is_refused_by_its_field(fields: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        families.describe({**STABLELM, **fields})
