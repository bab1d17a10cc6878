"""Families whose layers are Llama's but for a norm, a scale or a rope: Mistral, Granite, OLMo, EXAONE 4 and others."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Alike, Positions, described
from models import make_model
from oracle_models import (
    ERNIE,
    EXAONE4,
    EXAONE4_FULL,
    GEMMA,
    GRANITE,
    GRANITE4,
    HELIUM,
    HUNYUAN,
    MINISTRAL,
    MINISTRAL3,
    MISTRAL,
    OLMO2,
    OLMO3,
    SEED_OSS,
)

from edgepack.bundle.decoder import Temperature
from edgepack.bundle.rope import Rope, YarnScaling
from edgepack.errors import EdgepackError, SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

# Absent fields ---------------------------------------------------------------------------------------------------


def without(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


def of_text(**fields: Any) -> dict[str, Any]:
    return {**MINISTRAL3, "text_config": {**MINISTRAL3["text_config"], **fields}}


def test_absent_fields_of_a_mistral_take_the_defaults_of_its_class() -> None:
    decoder = described({**without(MISTRAL, "sliding_window", "num_key_value_heads"), "num_attention_heads": 8})
    # A window of 4096 hides nothing of a context of 512.
    assert (decoder.n_kv_heads, decoder.pattern[0].window) == (8, None)
    longer = without(MISTRAL, "sliding_window") | {"max_position_embeddings": 8192}
    assert described(longer).pattern[0].window == 4096
    assert described({**longer, "sliding_window": None}).pattern[0].window is None
    assert described(without(MISTRAL, "head_dim")).head_dim == 32


def test_absent_fields_of_a_ministral_3_take_the_defaults_of_its_class() -> None:
    text = without(MINISTRAL3["text_config"], "head_dim", "rope_parameters", "max_position_embeddings")
    decoder = described({**MINISTRAL3, "text_config": text})
    assert (decoder.head_dim, decoder.context) == (128, 262144)
    assert decoder.ropes == (Rope(1000000.0, 128, YarnScaling(16.0, 16384)),)
    assert decoder.temperature == Temperature(0.1, 16384)


def test_absent_fields_of_a_granite_take_the_defaults_of_its_class() -> None:
    scales = ("attention_multiplier", "embedding_multiplier", "logits_scaling", "residual_multiplier")
    decoder = described(without(GRANITE, *scales, "attention_bias", "mlp_bias", "tie_word_embeddings", "rope_theta"))
    assert (decoder.attention_scale, decoder.embedding_scale) == (1.0, 1.0)
    assert (decoder.logits_scale, decoder.residual_scale) == (1.0, 1.0)
    assert (decoder.qkv_bias, decoder.mlp_bias, decoder.tied) == (False, False, False)
    assert decoder.ropes[0].theta == 10000.0


def test_absent_fields_of_an_olmo_take_the_defaults_of_its_class() -> None:
    decoder = described(without(OLMO2, "attention_bias", "tie_word_embeddings", "rope_theta"))
    assert (decoder.qkv_bias, decoder.tied, decoder.ropes[0].theta) == (False, False, 10000.0)
    third = without(OLMO3, "sliding_window", "rope_theta") | {"num_hidden_layers": 8}
    assert described(third).pattern[0] == Positions(Rope(500000.0, 32), 4096)
    assert [layer.window for layer in described(third).attentions] == [4096, 4096, 4096, None] * 2


def test_absent_fields_of_an_exaone_take_the_defaults_of_its_class() -> None:
    config = without(EXAONE4, "sliding_window", "sliding_window_pattern", "layer_types", "head_dim", "rope_scaling")
    decoder = described({**config, "num_hidden_layers": 8})
    assert decoder.head_dim == 32
    assert decoder.pattern == (*[Positions(Rope(1000000.0, 32), 4096)] * 3, Positions(None))
    assert not described(without(config, "tie_word_embeddings")).tied


def test_absent_fields_of_the_others_take_the_defaults_of_their_classes() -> None:
    first = described(without(GEMMA, "head_dim", "torch_dtype", "rope_theta"))
    assert (first.head_dim, first.tied, first.embedding_scale) == (256, True, pytest.approx(math.sqrt(192), rel=1e-7))
    seed = described(without(SEED_OSS, "attention_bias", "attention_out_bias", "head_dim", "mlp_bias"))
    assert (seed.head_dim, seed.qkv_bias, seed.output_bias, seed.mlp_bias) == (128, True, False, False)
    ernie = described(without(ERNIE, "head_dim", "use_bias", "tie_word_embeddings", "rope_theta"))
    assert (ernie.head_dim, ernie.qkv_bias, ernie.mlp_bias, ernie.tied) == (128, False, False, True)
    assert ernie.ropes[0].theta == 500000.0
    helium = described(without(HELIUM, "head_dim", "attention_bias", "mlp_bias", "tie_word_embeddings", "rope_theta"))
    assert (helium.head_dim, helium.qkv_bias, helium.tied, helium.ropes[0].theta) == (128, False, False, 100000.0)
    hunyuan = described(without(HUNYUAN, "rope_scaling", "head_dim", "attention_bias"))
    assert (hunyuan.ropes, hunyuan.qkv_bias) == ((Rope(10000.0, 32),), False)


# What a field means ----------------------------------------------------------------------------------------------


def test_a_class_or_a_model_type_alone_says_which_of_a_family_it_is() -> None:
    text = MINISTRAL3["text_config"]
    by_type = described(without(text, "rope_parameters"))
    by_class = described({**without(text, "rope_parameters", "model_type"), "architectures": ["Ministral3ForCausalLM"]})
    assert by_type == by_class
    assert isinstance(by_class.ropes[0].scaling, YarnScaling)


def test_layer_types_of_a_mistral_say_which_layers_have_the_window() -> None:
    assert [layer.window for layer in described(MINISTRAL).attentions] == [None, 24, 24, 24]
    assert [layer.window for layer in described(MISTRAL).attentions] == [24] * 4


def test_a_magnitude_of_yarn_follows_from_the_two_scales() -> None:
    text = MINISTRAL3["text_config"]["rope_parameters"]
    halved = of_text(rope_parameters={**text, "mscale_all_dim": 0.5})
    assert described(halved).ropes[0].magnitude == (0.1 * math.log(16) + 1) / (0.05 * math.log(16) + 1)
    assert described(MINISTRAL3).ropes[0].magnitude == 1.0
    stated = of_text(rope_parameters={**text, "attention_factor": 1.3})
    assert described(stated).ropes[0].magnitude == 1.3
    alone = of_text(rope_parameters=without(text, "mscale", "mscale_all_dim"))
    assert described(alone).ropes[0].magnitude == 0.1 * math.log(16) + 1
    assert described(of_text(rope_parameters=without(text, "llama_4_scaling_beta"))).temperature is None


def test_the_pattern_of_an_exaone_is_a_number_or_letters() -> None:
    plain = without(EXAONE4, "layer_types")
    assert described({**plain, "sliding_window_pattern": 4}) == described(EXAONE4)
    assert described({**plain, "sliding_window_pattern": "LG"}).pattern[1] == Positions(None)
    assert all(layer.rope and layer.window is None for layer in described(EXAONE4_FULL).attentions)


def test_a_granite_4_rotates_only_where_it_says_so() -> None:
    assert described(GRANITE4).ropes == (Rope(10000.0, 32),)
    assert described({**GRANITE4, "position_embedding_type": "nope"}).pattern == (Positions(None),)
    assert described({**GRANITE4, "shared_intermediate_size": 64}).intermediate_size == 64


def test_the_alpha_of_a_hunyuan_stretches_its_base_once_and_for_all() -> None:
    assert described(HUNYUAN).ropes == (Rope(10000.0 * 1000.0 ** (48 / 46), 48),)
    assert described({**HUNYUAN, "rope_scaling": {**HUNYUAN["rope_scaling"], "alpha": None}}).ropes[0].theta == 10000.0


def test_both_spellings_of_the_rope_give_one_decoder() -> None:
    for config in (MISTRAL, GRANITE, GRANITE4, GEMMA, OLMO2, SEED_OSS, ERNIE, HELIUM, EXAONE4, HUNYUAN):
        section = {"rope_type": "default", **(config.get("rope_scaling") or {}), "rope_theta": config["rope_theta"]}
        new = without(config, "rope_theta", "rope_scaling") | {"rope_parameters": section}
        assert described(new) == described(config), config["model_type"]
    near, far = {"rope_type": "default", "rope_theta": 5e5}, {**OLMO3["rope_scaling"], "rope_theta": 5e5}
    section = {"sliding_attention": near, "full_attention": far}
    new = without(OLMO3, "rope_theta", "rope_scaling") | {"rope_parameters": section}
    assert described(new) == described(OLMO3)


@pytest.mark.parametrize("config", [ERNIE, HELIUM])
def test_neighbours_that_turn_are_read_apart(config: Mapping[str, Any], tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, config, tokenizer=False)) as checkpoint:
        weights = families.open_model(checkpoint)
        half = Alike(weights.decoder).head_dim // 2
        stored = checkpoint.rows("model.layers.1.self_attn.k_proj.weight", 0, 4 * half)
        found = weights.rows("layers.1.attention.k", 0, 4 * half)
        for head in (0, 2 * half):
            for pair in range(half):
                assert np.array_equal(found[head + pair], stored[head + 2 * pair])
                assert np.array_equal(found[head + half + pair], stored[head + 2 * pair + 1])
        same = checkpoint.rows("model.layers.1.self_attn.v_proj.weight", 0, 4 * half)
        assert np.array_equal(weights.rows("layers.1.attention.v", 0, 4 * half), same)


# What is refused -------------------------------------------------------------------------------------------------

REFUSED: list[tuple[Mapping[str, Any], str]] = [
    ({**MISTRAL, "hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({**MISTRAL, "rope_scaling": {"type": "longrope"}}, "rope_scaling.type is 'longrope'"),
    (of_text(model_type="llama"), "text_config.model_type is 'llama'"),
    ({**GRANITE, "num_local_experts": 8}, "num_local_experts: a mixture of experts"),
    ({**GRANITE4, "num_local_experts": 4}, "num_local_experts"),
    (without(GRANITE4, "num_local_experts"), "num_local_experts is 8; edgepack builds 0 only"),
    ({**GRANITE4, "layer_types": ["mamba", *["attention"] * 3]}, "layer_types has 'mamba'"),
    (without(GRANITE4, "layer_types"), "layer_types has 'linear_attention'"),
    ({**GEMMA, "hidden_activation": "silu"}, "says"),
    ({**GEMMA, "hidden_act": "silu"}, "hidden_act is 'silu'"),
    ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({**OLMO2, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    ({**EXAONE4, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    ({**HELIUM, "hidden_act": "relu"}, "hidden_act is 'relu'"),
    ({**SEED_OSS, "partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({**HUNYUAN, "num_experts": 16}, "num_experts: a mixture of experts"),
    ({**ERNIE, "rope_scaling": {"type": "dynamic", "alpha": 2.0}}, "rope_scaling.alpha has no meaning"),
]


@pytest.mark.parametrize(("config", "message"), REFUSED)
def test_what_is_not_built_is_refused_by_field(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises((UnsupportedModelError, SourceError), match=re.escape(message)):
        described(config)


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({**MISTRAL, "sliding_window": 0}, "sliding_window must be a whole number above 0"),
    ({**MINISTRAL, "layer_types": ["full_attention"]}, "layer_types must name the kind of each of the 4 layers"),
    (of_text(tie_word_embeddings="yes"), "tie_word_embeddings must be true or false"),
    ({**GRANITE, "logits_scaling": 0}, "logits_scaling must be a number above 0"),
    ({**GRANITE, "residual_multiplier": "0.22"}, "residual_multiplier must be a number above 0"),
    ({**OLMO3, "layer_types": ["chunked_attention"] * 5}, "layer_types[0] is 'chunked_attention'"),
    ({**without(EXAONE4, "layer_types"), "sliding_window_pattern": "LGL"}, "sliding_window_pattern must be"),
    ({**SEED_OSS, "attention_out_bias": 1}, "attention_out_bias must be true or false"),
    ({**ERNIE, "use_bias": None, "tie_word_embeddings": 0}, "tie_word_embeddings must be true or false"),
    ({**HUNYUAN, "rope_scaling": {"type": "dynamic", "alpha": -1.0}}, "rope_scaling.alpha must be a number above 0"),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_field_is_named(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(EdgepackError, match=re.escape(message)) as raised:
        described(config)
    assert isinstance(raised.value, SourceError)
