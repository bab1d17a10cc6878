"""Gemma 2 and Gemma 3: windows and ropes by layer, the scale of the embeddings, softcaps, norms, and the text part."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import Positions, described
from models import make_model, write_safetensors
from oracle_models import GEMMA2, GEMMA3, GEMMA3_V5, GEMMA3_VISION

from edgepack.bundle.rope import LinearScaling, Rope
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint

LOCAL = Positions(Rope(10000.0, 32), window=24)
GLOBAL = Positions(Rope(1000000.0, 32, LinearScaling(8.0)))


def without(config: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in config.items() if name not in names}


@pytest.mark.shared
def test_gemma_2_2b(shared: Path) -> None:
    decoder = described(json.loads((shared / "configs/gemma-2-2b-it.json").read_text()))
    assert decoder.n_parameters == 2_614_341_888
    rope = Rope(10000.0, 256)
    assert decoder.pattern == (Positions(rope, 4096), Positions(rope))
    assert (decoder.embedding_scale, decoder.attention_softcap, decoder.logits_softcap) == (48.0, 50.0, 30.0)
    assert (decoder.attention_scale, decoder.tied, decoder.wide) == (None, True, True)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "parameters", "scale", "window", "factor"),
    [
        ("gemma-3-270m-it", 268_098_176, 25.25, 512, None),
        ("gemma-3-1b-it", 999_885_952, 34.0, 512, None),
        ("gemma-3-4b-it", 3_880_263_168, 50.5, 1024, 8.0),
    ],
)
def test_gemma_3(shared: Path, name: str, parameters: int, scale: float, window: int, factor: float | None) -> None:
    decoder = described(json.loads((shared / f"configs/{name}.json").read_text()))
    assert (decoder.n_parameters, decoder.embedding_scale) == (parameters, scale)
    far = Rope(1000000.0, 256, factor and LinearScaling(factor))
    assert decoder.pattern == (Positions(Rope(10000.0, 256), window),) * 5 + (Positions(far),)
    assert (decoder.attention_softcap, decoder.logits_softcap, decoder.qk_norm) == (None, None, "head")


@pytest.mark.shared
def test_the_text_part_of_a_gemma_that_sees_takes_the_defaults_of_transformers(shared: Path) -> None:
    decoder = described(json.loads((shared / "configs/gemma-3-4b-it.json").read_text()))
    assert (decoder.n_heads, decoder.n_kv_heads, decoder.head_dim, decoder.n_vocab) == (8, 4, 256, 262208)
    assert (decoder.trained_context, decoder.norm_eps, decoder.architecture) == (131072, 1e-6, "Gemma3ForCausalLM")


@pytest.mark.parametrize("config", [GEMMA2, GEMMA3, GEMMA3_VISION])
def test_a_gemma_needs_the_range_of_bf16(config: Mapping[str, Any]) -> None:
    assert described(config).wide


def test_gemma_2_has_windows_on_the_even_layers() -> None:
    rope = Rope(10000.0, 32)
    assert described(GEMMA2).pattern == (Positions(rope, 24), Positions(rope))
    # A window that hides nothing is still what tells the layers apart, and what an engine's architecture expects.
    assert described(GEMMA2, 24).pattern == (Positions(rope, 24), Positions(rope))
    assert described(GEMMA2, 24).windows == ()


def test_gemma_2_takes_the_defaults_of_transformers_but_not_for_a_null() -> None:
    absent = without(
        GEMMA2, "attn_logit_softcapping", "final_logit_softcapping", "head_dim", "query_pre_attn_scalar", "hidden_act"
    )
    decoder = described(absent)
    assert (decoder.attention_softcap, decoder.logits_softcap, decoder.head_dim) == (50.0, 30.0, 256)
    assert decoder.attention_scale is None
    decoder = described({**GEMMA2, "attn_logit_softcapping": None, "final_logit_softcapping": None})
    assert (decoder.attention_softcap, decoder.logits_softcap) == (None, None)


@pytest.mark.parametrize(
    ("hidden", "dtype", "scale"),
    [
        (640, "bfloat16", 25.25),
        (2560, "bfloat16", 50.5),
        (640, "float16", 25.296875),
        (640, "float32", float(np.float32(640**0.5))),
        (640, None, float(np.float32(640**0.5))),
        (4096, "bfloat16", 64.0),
    ],
)
@pytest.mark.parametrize("field", ["torch_dtype", "dtype"])
def test_the_scale_of_the_embeddings_is_rounded_as_the_weights_are(
    hidden: int, dtype: str | None, scale: float, field: str
) -> None:
    config = {**without(GEMMA2, "torch_dtype"), "hidden_size": hidden, field: dtype}
    assert described(config).embedding_scale == scale


def test_the_scores_are_scaled_by_a_number_of_their_own() -> None:
    assert described(GEMMA2).attention_scale == 24**-0.5
    assert described({**GEMMA2, "query_pre_attn_scalar": 32}).attention_scale is None


def test_gemma_3_has_a_rope_for_each_kind_of_layer() -> None:
    assert described(GEMMA3).pattern == (LOCAL, LOCAL, GLOBAL)
    assert described(GEMMA3, 24).pattern == (LOCAL, LOCAL, GLOBAL)


def test_gemma_3_has_the_bases_of_transformers_where_it_names_none() -> None:
    config = without(GEMMA3, "rope_theta", "rope_local_base_freq")
    assert described(config) == described(GEMMA3)
    config = {**GEMMA3_V5, "rope_parameters": {"full_attention": {"rope_type": "linear", "factor": 8.0}}}
    assert described(config) == described(GEMMA3)


@pytest.mark.parametrize("field", ["sliding_window_pattern", "_sliding_window_pattern"])
def test_every_so_many_layers_one_is_global(field: str) -> None:
    config = {**without(GEMMA3, "sliding_window_pattern"), "num_hidden_layers": 13}
    assert described({**config, field: 4}).pattern == (LOCAL, LOCAL, LOCAL, GLOBAL)
    assert described(config).pattern == (LOCAL,) * 5 + (GLOBAL,)
    assert described({**config, "num_hidden_layers": 5}).pattern == (LOCAL,)


def test_stated_layer_types_come_before_the_rule() -> None:
    types = ["full_attention", "sliding_attention", "full_attention", "sliding_attention", "full_attention"]
    assert described({**GEMMA3, "layer_types": types}).pattern == (GLOBAL, LOCAL)
    types[4] = "sliding_attention"
    assert described({**GEMMA3, "layer_types": types}).pattern == (GLOBAL, LOCAL, GLOBAL, LOCAL, LOCAL)


SPELLINGS: Mapping[str, Mapping[str, Any]] = {
    "version 5": GEMMA3_V5,
    "both": {**GEMMA3, **GEMMA3_V5},
    "half of each": {**GEMMA3, "rope_parameters": {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}}},
    "a null for a layer type": {**GEMMA3, "rope_parameters": {"full_attention": None, "sliding_attention": None}},
    "tied by word": {**GEMMA3, "tie_word_embeddings": True},
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_of_a_model_gives_one_decoder(name: str) -> None:
    assert described(SPELLINGS[name]) == described(GEMMA3)


def test_gemma_2_in_the_spelling_of_version_5() -> None:
    config = without(GEMMA2, "rope_theta", "torch_dtype")
    config |= {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "float32"}
    config |= {"layer_types": ["sliding_attention", "full_attention"] * 2}
    assert described(config) == described(GEMMA2)


def test_the_gain_of_a_norm_is_one_more_than_what_is_stored(tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, GEMMA3, dtype="bf16", tokenizer=False)) as checkpoint:
        weights = families.open_model(checkpoint)
        for canonical, stored in {
            "layers.1.attention.norm": "model.layers.1.input_layernorm.weight",
            "layers.1.attention.q_norm": "model.layers.1.self_attn.q_norm.weight",
            "layers.1.attention.post_norm": "model.layers.1.post_attention_layernorm.weight",
            "layers.1.mlp.norm": "model.layers.1.pre_feedforward_layernorm.weight",
            "layers.1.mlp.post_norm": "model.layers.1.post_feedforward_layernorm.weight",
            "norm": "model.norm.weight",
        }.items():
            assert np.array_equal(weights.rows(canonical, 3, 9), 1 + checkpoint.rows(stored, 3, 9))
        stored = "model.layers.1.mlp.up_proj.weight"
        assert np.array_equal(weights.rows("layers.1.mlp.up", 3, 9), checkpoint.rows(stored, 3, 9))


@pytest.mark.parametrize(
    ("body", "head", "vision"),
    [
        ("language_model.model.", "language_model.lm_head.", "vision_tower."),
        ("model.language_model.", "lm_head.", "model.vision_tower."),
    ],
)
@pytest.mark.parametrize("tied", [True, False])
def test_the_text_part_is_found_under_every_prefix(
    body: str, head: str, vision: str, tied: bool, tmp_path: Path
) -> None:
    config = {**GEMMA3_VISION, "tie_word_embeddings": tied}
    with open_checkpoint(make_model(tmp_path / "hub", config, tokenizer=False)) as checkpoint:
        stored = {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}
    renamed = {
        name.replace("language_model.model.", body)
        .replace("language_model.lm_head.", head)
        .replace("vision_tower.", vision): tensor
        for name, tensor in stored.items()
    }
    folder = make_model(tmp_path / "other", config, tokenizer=False)
    write_safetensors(folder, renamed, "f32")
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint)
        for canonical, name in {"embedding": "embed_tokens", "layers.6.mlp.down": "layers.6.mlp.down_proj"}.items():
            expected = stored[f"language_model.model.{name}.weight"]
            assert np.array_equal(weights.rows(canonical, 0, len(expected)), expected)
        assert ("head" in dict(weights.decoder.tensors())) is not tied


def test_a_tied_gemma_that_sees_may_repeat_its_embedding_but_not_change_it(tmp_path: Path) -> None:
    folder = make_model(tmp_path, GEMMA3_VISION, tokenizer=False)
    with open_checkpoint(folder) as checkpoint:
        stored = {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}
    head = stored["language_model.model.embed_tokens.weight"].copy()
    write_safetensors(folder, stored | {"language_model.lm_head.weight": head}, "f32")
    with open_checkpoint(folder) as checkpoint:
        assert families.open_model(checkpoint).decoder.tied
    head[0, 0] += 1
    write_safetensors(folder, stored | {"language_model.lm_head.weight": head}, "f32")
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=r"ties language_model.lm_head.weight"):
        families.open_model(checkpoint)


def text(**fields: object) -> dict[str, Any]:
    return {**GEMMA3_VISION, "text_config": {**GEMMA3_VISION["text_config"], **fields}}


def nested(**sections: object) -> dict[str, Any]:
    return {**GEMMA3_V5, "rope_parameters": {**GEMMA3_V5["rope_parameters"], **sections}}


WRONG: list[tuple[Mapping[str, Any], str]] = [
    ({**GEMMA2, "sliding_window": None}, "the field sliding_window is missing"),
    ({**GEMMA2, "query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be"),
    ({**GEMMA2, "attn_logit_softcapping": -1.0}, "attn_logit_softcapping must be"),
    ({**GEMMA2, "final_logit_softcapping": "30"}, "final_logit_softcapping must be"),
    ({**GEMMA2, "hidden_act": "gelu"}, "hidden_activation says 'gelu_pytorch_tanh', hidden_act says 'gelu'"),
    ({**GEMMA2, "dtype": "bfloat16"}, "torch_dtype says 'float32', dtype says 'bfloat16'"),
    ({**GEMMA2, "layer_types": ["full_attention"] * 3}, "layer_types must name the kind of each of the 4 layers"),
    ({**GEMMA2, "layer_types": "full_attention"}, "layer_types must name the kind of each of the 4 layers"),
    ({**GEMMA2, "layer_types": ["full_attention"] * 3 + ["linear"]}, "layer_types[3] is 'linear'"),
    ({**GEMMA3, "_sliding_window_pattern": 6}, "sliding_window_pattern says 3, _sliding_window_pattern says 6"),
    ({**without(GEMMA3, "layer_types"), "sliding_window_pattern": 0}, "sliding_window_pattern must be"),
    ({**GEMMA3_V5, "rope_theta": 5e5}, "rope_parameters.full_attention.rope_theta says 1000000.0, rope_theta says"),
    ({**GEMMA3_V5, "rope_local_base_freq": 5e5}, "rope_parameters.sliding_attention.rope_theta says 10000.0, rope_loc"),
    (
        {**GEMMA3_V5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        "rope_scaling says LinearScaling(factor=4.0), rope_parameters.full_attention says",
    ),
    (nested(full_attention=8.0), "rope_parameters.full_attention must be an object"),
    (nested(full_attention={"rope_type": "linear"}), "the field rope_parameters.full_attention.factor is missing"),
    ({**GEMMA3, "rope_parameters": [1]}, "rope_parameters must be an object"),
    (without(GEMMA3_VISION, "text_config"), "text_config must be an object, not None"),
    (text(tie_word_embeddings=False) | {"tie_word_embeddings": True}, "text_config.tie_word_embeddings says False"),
    (text(torch_dtype="float32"), "torch_dtype says 'bfloat16', text_config.torch_dtype says 'float32'"),
    (text(dtype="float32"), "torch_dtype says 'bfloat16', dtype says 'float32'"),
]


@pytest.mark.parametrize(("config", "message"), WRONG)
def test_a_wrong_config_is_refused(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(SourceError, match=re.escape(message)) as raised:
        described(config)
    assert not isinstance(raised.value, UnsupportedModelError)


UNSUPPORTED: list[tuple[Mapping[str, Any], str]] = [
    ({**without(GEMMA2, "hidden_act"), "hidden_activation": "gelu"}, "hidden_activation is 'gelu'"),
    ({**GEMMA2, "use_bidirectional_attention": True}, "use_bidirectional_attention is True"),
    ({**GEMMA2, "torch_dtype": "float64"}, "torch_dtype is 'float64'"),
    ({**GEMMA3, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping is 50.0; edgepack builds Gemma 3 without"),
    ({**GEMMA3, "final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0; edgepack builds Gemma 3 without"),
    ({**GEMMA3, "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}, "rope_parameters.rope_theta has no"),
    ({**GEMMA3, "rope_scaling": {"rope_type": "ntk", "factor": 2.0}}, "rope_scaling.rope_type is 'ntk'"),
    (text(model_type="gemma3n_text"), "text_config.model_type is 'gemma3n_text'"),
]


@pytest.mark.parametrize(("config", "message"), UNSUPPORTED)
def test_what_is_not_built_is_refused_by_field(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        described(config)
