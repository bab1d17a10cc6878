"""What all families share: how they meet bad input, what they refuse, and what never gets into a decoder."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import make_llama, make_model, write_safetensors
from oracle_models import ORACLE_MODELS

from edgepack.bundle.decoder import Decoder
from edgepack.errors import SourceError, UnsupportedModelError, UsageError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.families import FAMILIES, llama_like, quantised
from edgepack_packager.families.mapping import MappedWeights, Source

CONFIGS = {name: fixture.fields for name, fixture in ORACLE_MODELS.items() if fixture.fields}

SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "vocab_size"),
    *("max_position_embeddings", "rms_norm_eps"),
)

# Of the MLP that experts would share, and names of its own.
READ_AS = {
    ("granite4", "intermediate_size"): "shared_intermediate_size",
    **{(name, "intermediate_size"): "block_ff_dim" for name in ("lfm2", "lfm2-biased")},
    **{(name, "rms_norm_eps"): "norm_eps" for name in ("lfm2", "lfm2-biased", "lfm3")},
    ("stablelm", "rms_norm_eps"): "layer_norm_eps",
}


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    part: dict[str, Any] = config.get("text_config", config)
    return part


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("field", [*SIZES, "num_key_value_heads", "head_dim"])
def test_a_wrong_number_is_named(name: str, field: str) -> None:
    config, field = copy.deepcopy(dict(CONFIGS[name])), READ_AS.get((name, field), field)
    for value in (0, -1, "64", True, [64], float("nan"), float("inf"), 10**400):
        text_part(config)[field] = value
        with pytest.raises(SourceError, match=f"{field} must be"):
            families.describe(config)


@pytest.mark.parametrize("name", [name for name in CONFIGS if not name.startswith("gemma3")])
@pytest.mark.parametrize("field", SIZES)
def test_a_missing_size_is_named(name: str, field: str) -> None:
    if (name, field) == ("ministral3", "max_position_embeddings"):
        pytest.skip("its class has a default that published models share")
    config, field = copy.deepcopy(dict(CONFIGS[name])), READ_AS.get((name, field), field)
    del text_part(config)[field]
    with pytest.raises(SourceError, match=f"the field {field} is missing"):
        families.describe(config)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("context", [0, -1, 131073])
def test_a_context_that_a_model_does_not_have_is_refused(name: str, context: int) -> None:
    with pytest.raises(UsageError, match="which the model was trained for"):
        families.describe(CONFIGS[name], context)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_smaller_context_is_kept_beside_the_trained_one(name: str) -> None:
    whole, cut = families.describe(CONFIGS[name]), families.describe(CONFIGS[name], 16)
    assert (cut.context, cut.trained_context) == (16, whole.trained_context)
    assert cut.windows == ()


@pytest.mark.parametrize("name", CONFIGS)
def test_whether_weights_are_quantised_is_theirs_to_say(name: str) -> None:
    config = {**CONFIGS[name], "quantization_config": {"quant_method": "awq"}}
    assert families.describe(config) == families.describe(CONFIGS[name])
    assert quantised.declared(config) == ("quantization_config", "awq")


@pytest.mark.parametrize("name", CONFIGS)
def test_the_model_type_decides_where_a_class_does_not(name: str) -> None:
    config = {key: value for key, value in CONFIGS[name].items() if key != "architectures"}
    assert families.describe(config) == families.describe(CONFIGS[name])


@pytest.mark.parametrize("name", CONFIGS)
def test_experts_are_refused_by_field(name: str) -> None:
    config = copy.deepcopy(dict(CONFIGS[name]))
    text_part(config)["num_local_experts"] = 8
    with pytest.raises(UnsupportedModelError, match="num_local_experts: a mixture of experts"):
        families.describe(config)


def wrapped(name: str) -> str:
    return f"module._fsdp_wrapped_module.{name}"


def in_layers(name: str) -> str:
    return re.sub(r"(layers\.\d+\.)", r"\1_checkpoint_wrapped_module.", name)


def in_a_trainer(name: str) -> str:
    return f"policy.llm.{name}"


@pytest.mark.parametrize("rename", [wrapped, in_layers, in_a_trainer])
@pytest.mark.parametrize("name", ["phi3-4k", "gemma2", "gemma3", "gemma3-vision", "qwen2", "qwen3", "smollm3"])
def test_wrappers_of_every_family_are_seen_through(name: str, rename: Callable[[str], str], tmp_path: Path) -> None:
    folder = make_model(tmp_path, CONFIGS[name])
    with open_checkpoint(folder) as checkpoint:
        expected = dict(everything(families.open_model(checkpoint)))
        tensors = {each: checkpoint.rows(each, 0, entry.shape[0]) for each, entry in checkpoint.tensors.items()}
    write_safetensors(folder, {rename(each): tensor for each, tensor in tensors.items()}, "f32")
    with open_checkpoint(folder) as checkpoint:
        found = dict(everything(families.open_model(checkpoint)))
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[each], tensor) for each, tensor in expected.items())


def everything(weights: Weights) -> Iterator[tuple[str, Float32]]:
    for name, shape in weights.decoder.tensors():
        yield name, weights.rows(name, 0, shape[0])


UNBUILT = [
    ({"architectures": ["Gemma3nForConditionalGeneration"]}, "names Gemma3nForConditionalGeneration (Gemma 3n, "),
    (
        {"architectures": ["Gemma4UnifiedForConditionalGeneration"]},
        "names Gemma4UnifiedForConditionalGeneration (Gemma 4 Unified, ",
    ),
    ({"architectures": ["Phi3VForCausalLM"]}, "names Phi3VForCausalLM (Phi-3-vision)"),
    ({"architectures": ["Phi4MMForCausalLM"]}, "names Phi4MMForCausalLM (Phi-4-multimodal)"),
    ({"architectures": ["PhiMoEForCausalLM"]}, "names PhiMoEForCausalLM (Phi-3.5-MoE, a mixture of experts)"),
    ({"architectures": ["Qwen2VLForConditionalGeneration"]}, "(Qwen2-VL, a vision model)"),
    ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, "(num_experts: a mixture of experts)"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "(num_local_experts: a mixture of experts)"),
    ({"architectures": ["NewVisionModel"], "vision_config": {"hidden_size": 8}}, "(vision_config: a vision model)"),
    ({"architectures": ["NewAudioModel"], "audio_config": {"hidden_size": 8}}, "(audio_config: an audio model)"),
    ({"architectures": ["Phi3ForCausalLM", "Other"]}, "names Phi3ForCausalLM, Other (model_type None)"),
]


@pytest.mark.parametrize(("config", "message"), UNBUILT)
def test_what_is_not_built_is_refused_by_its_name(config: Mapping[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(message)):
        families.describe(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_where_a_model_came_from_does_not_get_into_its_decoder(name: str) -> None:
    config = copy.deepcopy(dict(CONFIGS[name]))
    for place in (config, text_part(config)):
        place["_name_or_path"] = "/home/somebody/secret"
    assert b"secret" not in msgspec.json.encode(families.describe(config))


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 600) | st.floats() | st.sampled_from(["", "linear", "bfloat16"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["rope_type", "factor", "x"]), inner),
    max_leaves=4,
)

FIELDS = sorted(
    {field for config in CONFIGS.values() for field in (*config, *config.get("text_config", ()))}
    | {"rope_parameters", "layer_types", "dtype", "_sliding_window_pattern", "use_bidirectional_attention"}
)


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=60, deadline=None)
@given(junk=st.dictionaries(st.sampled_from(FIELDS), JUNK, min_size=1, max_size=3), nested=st.booleans())
def test_any_config_gives_a_sound_decoder_or_a_named_error(name: str, junk: dict[str, Any], nested: bool) -> None:
    config = copy.deepcopy(dict(CONFIGS[name]))
    (text_part(config) if nested else config).update(junk)
    try:
        decoder = families.describe(config)
    except SourceError:
        return
    # Decoding checks every bound that the decoder's types state.
    assert msgspec.json.decode(msgspec.json.encode(decoder), type=Decoder) == decoder


@pytest.mark.parametrize("name", CONFIGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_junk_inside_a_section_is_a_named_error_too(name: str, data: st.DataObject) -> None:
    config = copy.deepcopy(dict(CONFIGS[name]))
    sections = [value for value in text_part(config).values() if isinstance(value, dict)] or [config]
    sections += [value for section in sections for value in section.values() if isinstance(value, dict)]
    section = data.draw(st.sampled_from(sections))
    keys = st.sampled_from(sorted({*section, "factor", "rope_type", "rope_theta"}))
    section.update(data.draw(st.dictionaries(keys, JUNK, min_size=1, max_size=2)))
    with contextlib.suppress(SourceError):
        families.describe(config)


@pytest.mark.parametrize("name", CONFIGS)
def test_every_tensor_of_a_checkpoint_is_read_exactly_once(name: str, tmp_path: Path) -> None:
    with open_checkpoint(make_model(tmp_path, CONFIGS[name], tokenizer=False)) as checkpoint:
        decoder = families.open_model(checkpoint).decoder
        shared = [layer for layer, attention in decoder.attending.items() if not attention.owns]
        spare = (f"model.layers.{layer}.self_attn.{part}" for layer in shared for part in ("k_", "v_"))
        ignored = ("vision_tower.", "multi_modal_projector.", *spare)
        stored = sum(
            int(np.prod(entry.shape)) for key, entry in checkpoint.tensors.items() if not key.startswith(ignored)
        )
    assert decoder.n_parameters == stored


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: min(family.ARCHITECTURES))
def test_a_tensor_that_nobody_reads_is_refused(family: families.Family, tmp_path: Path) -> None:
    config = next((c for c in CONFIGS.values() if c["architectures"][0] in family.ARCHITECTURES), None)
    folder = make_model(tmp_path, config) if config else make_llama(tmp_path)
    with open_checkpoint(folder) as checkpoint:
        tensors = {name: checkpoint.rows(name, 0, entry.shape[0]) for name, entry in checkpoint.tensors.items()}
    write_safetensors(folder, tensors | {"model.layers.0.self_attn.lora.weight": np.ones((2, 2), np.float32)}, "f32")
    with open_checkpoint(folder) as checkpoint, pytest.raises(SourceError, match=r"has the tensor .*lora.weight"):
        families.open_model(checkpoint)


MISREAD = {
    "a row between two parts": {"layers.0.attention.q": Source("model.layers.0.self_attn.q_proj.weight", first=1)},
    "a row in two parts": {"layers.0.mlp.up": Source("model.layers.0.mlp.gate_proj.weight", first=159)},
    "one tensor for two": {"layers.0.mlp.up": Source("model.layers.0.mlp.gate_proj.weight")},
    "two widths in one": {"layers.0.mlp.down": Source("model.layers.0.mlp.gate_proj.weight", first=160)},
}


@pytest.mark.parametrize("fault", MISREAD)
def test_a_family_whose_parts_do_not_cover_a_tensor_is_stopped(fault: str, tmp_path: Path) -> None:
    def source(decoder: Decoder, name: str) -> Source:
        return MISREAD[fault].get(name) or llama_like.source(decoder, name)

    with open_checkpoint(make_llama(tmp_path)) as checkpoint, pytest.raises(ValueError, match="do not follow"):
        MappedWeights(checkpoint, families.describe(checkpoint.config), source, llama_like.IGNORED)
