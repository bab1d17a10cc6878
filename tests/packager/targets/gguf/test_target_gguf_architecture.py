"""Which of llama.cpp's architectures a decoder becomes, what is refused by name, and what a file then says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from decoders import LFM2, QWEN3_5, Positions, RandomWeights, describe
from gguf_decoders import (
    BOTH_SIDES,
    DECODERS,
    EXAONE4,
    EXAONE4_OF_64,
    FAR,
    GEMMA,
    GEMMA1,
    GEMMA2,
    GEMMA3,
    GLOBAL,
    LINEAR,
    LLAMA3,
    LOCAL,
    LONG,
    MISTRAL3,
    OLMO2,
    OTHER_TURNS,
    QWEN35,
    WINDOW,
    YARN,
    architecture,
    gemma4,
    rope,
)
from msgspec import UNSET
from msgspec.structs import replace

from edgepack.bundle.decoder import Convolution, Decoder, Delta, arranged
from edgepack.bundle.rope import ProportionalScaling
from edgepack.errors import BuildError, UnsupportedModelError
from edgepack_packager.checkpoint.gguf.parse import parse
from edgepack_packager.checkpoint.weights import blocks
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.header import U32
from edgepack_packager.targets.gguf.layout import place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.targets.gguf.recipe import GRIDS, SCHEMES
from edgepack_packager.targets.gguf.tensors import factor, tables


@pytest.mark.parametrize("name", DECODERS)
def test_the_first_architecture_that_has_all_features(name: str) -> None:
    assert choose(DECODERS[name]).name == architecture(name)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"pattern": (LOCAL,)}, "llama lacks attention windows", "--context 24"),
    ({"pattern": (LOCAL, Positions(rope(), 48))}, "windows of several sizes", "--context 24"),
    ({"pattern": (LOCAL, FAR)}, "lacks attention windows and lacks a rope of its own", "other targets"),
    ({"pattern": (Positions(rope(dim=12), 24),)}, "attention windows", "24"),
    ({"qk_norm": "head", "rope": rope(dim=12)}, "heads of which a part is rotated", "other targets"),
    (
        {"qk_norm": "head", "rope": rope(scaling=LLAMA3)},
        "llama lacks norms of q and k, qwen3 lacks llama3 rope scaling",
        "",
    ),
    ({"qk_norm": "head", "output_bias": True}, "bias on the attention's output", ""),
    ({"rope": rope(scaling=LONG), "head_dim": 16, "n_heads": 2}, "heads that together are not as wide", ""),
    ({"pattern": (GLOBAL, Positions(None))}, "layers without rope that are not every fourth", ""),
    ({"pattern": (Positions(None),)}, "layers without rope", ""),
    ({"activation": "gelu_tanh"}, "lacks gelu", ""),
    ({"norms": "both"}, "norms after each block", ""),
    ({"embedding_scale": 3.0, "qk_norm": "head"}, "embeddings times another number", ""),
    ({"logits_softcap": 30.0}, "softcap on the logits", ""),
    (GEMMA3 | {"qk_norm": None}, "always has norms of q and k", ""),
    (GEMMA2 | {"tied": False}, "gemma2 lacks a head of its own", ""),
    (GEMMA2 | {"pattern": (LOCAL, FAR)}, "a rope of its own for layers with a window", ""),
    (
        GEMMA3 | {"pattern": (Positions(rope(scaling=LINEAR), 24), FAR)},
        "linear rope scaling in layers with a window",
        "",
    ),
    (GEMMA3 | {"pattern": (LOCAL, GLOBAL, FAR)}, "ropes that do not follow the windows", ""),
    (GEMMA3 | {"embedding_scale": 8.1}, "embeddings times another number", ""),
    (GEMMA | {"attention_softcap": 4.0}, "always has a softcap on the logits", ""),
    (BOTH_SIDES | {"qk_norm": None}, "gemma-embedding always has norms of q and k", ""),
    (BOTH_SIDES | {"tied": False}, "gemma-embedding lacks a head of its own", ""),
    (BOTH_SIDES | {"pattern": (LOCAL, Positions(rope(), 48))}, "gemma-embedding lacks windows of several sizes", ""),
    (BOTH_SIDES | {"pattern": (LOCAL,)}, "gemma-embedding always has layers with a window and layers without", ""),
    (BOTH_SIDES | {"pattern": (FAR,)}, "gemma-embedding always has layers with a window and layers without", ""),
    ({"bidirectional": True, "headless": True}, "llama lacks attention to what comes after", "other targets"),
    (GEMMA1 | {"embedding_scale": 3.0}, "granite lacks gelu", ""),
    (GEMMA1 | {"tied": False}, "gemma lacks a head of its own", ""),
    (GEMMA1 | {"output_bias": True}, "gemma lacks a bias on the attention's output", ""),
    ({"qk_norm": "head", "logits_scale": 0.5}, "lacks scaled logits", ""),
    ({"qk_norm": "head", "residual_scale": 0.5}, "lacks blocks whose output is scaled", ""),
    ({"pattern": (Positions(rope(scaling=YARN), 24),)}, "lacks yarn rope scaling in layers with a window", "targets"),
    ({"qk_norm": "head", "rope": rope(scaling=OTHER_TURNS)}, "qwen3 lacks a yarn ramp between other turns", ""),
    ({"rope": rope(scaling=replace(YARN, whole=False))}, "a yarn ramp that is not one between two whole pairs", ""),
    (
        {"rope": rope(scaling=replace(OTHER_TURNS, beta_fast=0.125))},
        "mistral3 lacks a yarn ramp that is not one between two whole pairs",
        "",
    ),
    (
        MISTRAL3 | {"rope": rope(scaling=replace(OTHER_TURNS, original_context=32))},
        "mistral3 lacks queries that grow by another length than the original context of their rope",
        "",
    ),
    (MISTRAL3 | {"pattern": (LOCAL,)}, "mistral3 lacks attention windows", "--context 24"),
    (MISTRAL3 | {"rope": rope(dim=12)}, "heads of which a part is rotated", ""),
    ({**LFM2, "convolution": Convolution(length=4, bias=True)}, "lfm2 lacks biases in convolutions", "other targets"),
    (QWEN3_5, "qwen35 lacks delta rules with heads of values of another size than those of keys", "other targets"),
    (
        {**QWEN35, "delta": Delta(n_key_heads=2, n_value_heads=4, key_dim=16, value_dim=16, length=4)},
        "qwen35 lacks delta rules with more heads of values than of keys, of a size that is no multiple of 32",
        "other targets",
    ),
    ({**QWEN35, "gated": False}, "qwen35 always has a gate on the attention's output", ""),
    ({**LFM2, "qk_norm": None}, "lfm2 always has norms of q and k", ""),
    ({**LFM2, "rope": rope(scaling=LINEAR)}, "lfm2 lacks linear rope scaling", ""),
    ({**LFM2, "head_dim": 32}, "lfm2 lacks heads that together are not as wide", ""),
    ({"norm": "layer"}, "stablelm always has a head of its own", "other targets"),
    ({"norm": "layer", "tied": False, "output_bias": True}, "stablelm lacks a bias on the attention's output", ""),
    ({"norm": "layer", "tied": False, "qk_norm": "head"}, "qwen3 lacks LayerNorms with biases", ""),
    ({"norm": "layer", "tied": False, "qk_norm": "head"}, "stablelm lacks norms of q and k", ""),
    ({"norm": "layer", "tied": False, "rope": rope(scaling=YARN)}, "llama lacks LayerNorms with biases", ""),
    ({"norm": "layer", "tied": False, "head_dim": 32}, "stablelm lacks heads that together are not as wide", ""),
    (OLMO2 | {"tied": True}, "olmo2 always has a head of its own", ""),
    (OLMO2 | {"output_bias": True}, "olmo2 lacks a bias on the attention's output", ""),
    (OLMO2 | {"head_dim": 32}, "olmo2 lacks heads that together are not as wide", ""),
    (OLMO2 | {"rope": rope(scaling=LLAMA3)}, "olmo2 lacks llama3 rope scaling", ""),
    (OLMO2 | {"pattern": (LOCAL, FAR)}, "olmo2 lacks a rope of its own for layers with a window", ""),
    (
        OLMO2 | {"pattern": (Positions(rope(scaling=LINEAR), 24), Positions(rope(scaling=LINEAR)))},
        "olmo2 lacks linear rope scaling in layers with a window",
        "",
    ),
    (
        OLMO2 | {"pattern": (Positions(rope(scaling=YARN), 24), Positions(rope(scaling=YARN)))},
        "olmo2 lacks yarn rope scaling in layers with a window",
        "",
    ),
    (OLMO2 | {"qk_norm": "head", "head_dim": 32}, "exaone4 lacks heads that together are not as wide", ""),
    (EXAONE4 | {"pattern": (LOCAL,)}, "exaone4 lacks attention windows", "--context 24"),
    (EXAONE4 | {"n_layers": 64}, "exaone4 always has windows in models of 64 layers", ""),
    (EXAONE4_OF_64 | {"n_layers": 60}, "exaone4 has windows in models of 64 layers alone", ""),
    (EXAONE4_OF_64 | {"pattern": (LOCAL, GLOBAL)}, "exaone4 always has no rope in layers without window", ""),
    ({"qk_norm": "rotated", "rope": rope(scaling=LLAMA3)}, "hunyuan-dense lacks llama3 rope scaling", ""),
    ({"qk_norm": "rotated", "output_bias": True}, "hunyuan-dense lacks a bias on the attention's output", ""),
]


@pytest.mark.parametrize(("fields", "feature", "hint"), REFUSED)
def test_what_no_architecture_computes_is_named(
    fields: dict[str, Any], feature: str, hint: str, tmp_path: Path
) -> None:
    model = Model("tiny", describe(**fields), "f32")
    for attempt in (
        lambda: GgufTarget().scheme("f32", model),
        lambda: GgufTarget().measure(model.decoder, "f32", "f32"),
        lambda: GgufTarget().open(tmp_path, model, "f32"),
    ):
        with pytest.raises(UnsupportedModelError, match=feature) as error:
            attempt()
        assert hint in str(error.value)
    assert not list(tmp_path.iterdir())


def _other(layers: str = "sfsf sf", changes: Mapping[int, Mapping[str, Any]] = MappingProxyType({})) -> Decoder:
    """A Gemma 4 with another attention in some of its layers."""
    decoder = gemma4(layers)
    found = [
        replace(layer, mixer=replace(layer.mixer, **changes.get(index, {})))
        for index, layer in enumerate(decoder.layers)
    ]
    return replace(decoder, **arranged(found))


def _everywhere(decoder: Decoder, **changes: Any) -> Decoder:
    return replace(decoder, **arranged([replace(layer, **changes) for layer in decoder.layers]))


OTHERS: list[tuple[Decoder, str]] = [
    (
        _other(changes={5: {"kv_layer": 1}}),
        "gemma4 lacks shared keys of others than the last two layers that have some",
    ),
    (_other(changes={4: {"kv_layer": 0}}), "gemma4 lacks shared keys of others"),
    (
        _other("sfsfsf", {2: {"kv_layer": 0, "v_norm": UNSET}}),
        "gemma4 lacks shared keys of others than the last two layers that have some",
    ),
    (_other("sfsfsf", {0: {"v_norm": UNSET}}), "gemma4 lacks layers of several shapes"),
    (_other(changes={index: {"v_norm": UNSET} for index in range(6)}), "gemma4 always has norms of v"),
    (_other("ssss"), "gemma4 always has layers with a window and layers without"),
    (_other("ffff"), "gemma4 always has layers with a window and layers without"),
    (_other("sfsf", {0: {"head_dim": 32, "rope": rope(dim=32)}}), "gemma4 lacks layers of several shapes"),
    (_other("sfsf", {0: {"n_heads": 8}}), "gemma4 lacks layers of several shapes"),
    (_other("sfsf", {0: {"window": 48}}), "gemma4 lacks windows of several sizes"),
    (_other("sf", {0: {"softcap": 50.0}, 1: {"softcap": 50.0}}), "gemma4 lacks a softcap on the scores"),
    (_other("sfsf", {1: {"rope": rope(dim=32)}}), "gemma4 lacks ropes that do not follow the windows"),
    (
        _other("sf", {0: {"rope": rope(dim=16, scaling=ProportionalScaling(4))}}),
        "gemma4 lacks proportional rope scaling in layers with a window",
    ),
    (_other("sf", {1: {"rope": rope(1e6, 32, scaling=LINEAR)}}), "gemma4 lacks linear rope scaling"),
    (_other("sf", {1: {"rope": rope(1e6, 16)}}), "gemma4 lacks heads of which a part is rotated"),
    (_other("sf", {1: {"rope": None}}), "gemma4 lacks no rope in layers without window"),
    (gemma4(embedding_scale=1.0), "gemma4 always has embeddings times the root of their size"),
    (_everywhere(describe(), inputs=16), "llama lacks inputs of layers"),
    (_everywhere(describe(), scaled=True), "llama lacks scaled layers"),
    (describe(rope=rope(scaling=ProportionalScaling(4))), "llama lacks proportional rope scaling"),
]


@pytest.mark.parametrize(("decoder", "complaint"), OTHERS)
def test_layers_that_differ_otherwise_are_refused(decoder: Decoder, complaint: str) -> None:
    with pytest.raises(UnsupportedModelError, match=complaint):
        choose(decoder)


def test_a_window_as_long_as_the_context_is_one_yet() -> None:
    """As layers with a window read other keys, and have no table of their rope."""
    decoder = gemma4("sf", head_dims=(16, 16), context=WINDOW)
    assert choose(decoder).name == "gemma4"
    keys = metadata(Model("tiny", decoder, "f32"), "f32")
    assert keys["gemma4.attention.sliding_window"] == U32(WINDOW)
    both = Positions(rope(scaling=ProportionalScaling(4)), WINDOW), Positions(rope(scaling=ProportionalScaling(4)))
    with pytest.raises(UnsupportedModelError, match="proportional rope scaling in layers with a window"):
        choose(describe(pattern=both, context=WINDOW))


def test_of_several_that_lack_the_same_the_first_is_named() -> None:
    with pytest.raises(UnsupportedModelError) as error:
        choose(describe(qk_norm="head", rope=rope(scaling=LLAMA3)))
    assert "model: llama lacks norms of q and k, qwen3 lacks llama3 rope scaling, exaone4 always" in str(error.value)
    assert "granite" not in str(error.value)


def test_within_the_window_the_context_makes_a_model_possible() -> None:
    fields = {"pattern": (Positions(rope(scaling=LONG), 96),), "tied": False}
    with pytest.raises(UnsupportedModelError, match=r"--context 96"):
        choose(describe(**fields))
    assert choose(describe(**fields, context=96)).name == "phi3"


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in GRIDS])
@pytest.mark.parametrize("name", DECODERS)
def test_the_measure_is_what_the_writer_reports(name: str, scheme: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    written = _write(tmp_path, decoder, scheme)
    measured = GgufTarget().measure(decoder, "f32", scheme)
    assert measured == written
    data = (tmp_path / "model.gguf").read_bytes()
    found = parse(memoryview(data), BuildError)
    sizes = [info.shape[0] * info.row_bytes for info in found.tensors.values()]
    assert written.weights_bytes == sum(sizes)
    assert written.data_bytes == len(data) - min(info.start for info in found.tensors.values())
    assert written.tensor_bytes == sum(t.size for t in place(decoder, scheme).canonical.values())
    # rows of 64 do not fill a block of 256
    assert bool(written.fallbacks) == (scheme not in ("f32", "f16", "bf16", "q8_0"))


@pytest.mark.parametrize("scheme", ["f32", "bf16", "q8_0"])
@pytest.mark.parametrize("name", DECODERS)
def test_reading_back_undoes_every_transform(name: str, scheme: str, tmp_path: Path) -> None:
    decoder = DECODERS[name]
    weights = RandomWeights(decoder)
    _write(tmp_path, decoder, scheme)
    reader = GgufTarget().read(tmp_path, decoder)
    for tensor, start, stop in blocks(decoder):
        expected = weights.rows(tensor, start, stop).reshape(stop - start, -1)
        actual = reader.rows(tensor, start, stop).reshape(stop - start, -1)
        error, size = np.linalg.norm(actual - expected, axis=1), np.linalg.norm(expected, axis=1)
        assert (error <= reader.bound(tensor) * size + reader.floor(tensor)).all(), tensor
        if scheme == "f32" and factor(decoder, tensor) == 1 and not tensor.endswith("decay"):
            assert not error.any(), tensor
    reader.close()


def test_only_what_must_be_is_multiplied() -> None:
    scaled = {
        name: {tensor for tensor, _ in decoder.tensors() if factor(decoder, tensor) != 1}
        for name, decoder in DECODERS.items()
    }
    assert {name for name, tensors in scaled.items() if tensors} == {
        name for name in DECODERS if "scores" in name or "rounded" in name
    }
    assert all(t.endswith((".q", ".q.bias")) for t in scaled["llama: scores"] | scaled["phi3: partial, biases, scores"])
    normed = [name for name in scaled if "scores" in name and DECODERS[name].attentions[0].qk_norm]
    stateful = {"lfm2", "qwen35"}
    assert {architecture(name) for name in normed} == {
        "qwen3",
        "gemma3",
        "gemma4",
        "gemma-embedding",
        "olmo2",
        "exaone4",
        "hunyuan-dense",
        *stateful,
    }
    for name in normed:
        assert all(t.endswith(".q_norm") for t in scaled[name])
    assert all(t.endswith("post_norm") for t in scaled["gemma3: rounded embedding scale"])
    ends = ("attention.post_norm", "mlp.post_norm", "inputs.post_norm", "inputs.gate")
    assert {t.split(".", 2)[2] for t in scaled["gemma4: rounded embedding scale"]} == {*ends}
    rounded = scaled["gemma: rounded embedding scale, linear rope, scores"]
    assert {t for t in rounded if not t.endswith((".q", ".q.bias"))} == {"embedding", "norm"}


@pytest.mark.parametrize(
    ("layers", "scale"), [(46, 12**-0.5), (26, 16**-0.5)], ids=["taken for the 27B", "not taken for it"]
)
def test_the_scale_that_llama_cpp_chooses_by_the_number_of_layers(layers: int, scale: float) -> None:
    fields = GEMMA2 | {"n_layers": layers, "hidden_size": 48, "embedding_scale": 48**0.5}
    natural, other = describe(**fields, attention_scale=scale), describe(**fields, attention_scale=0.2)
    assert factor(natural, "layers.0.attention.q") == 1
    assert factor(other, "layers.0.attention.q") == pytest.approx(0.2 / scale)


def test_gemma_3_27b_has_its_own_number_of_layers() -> None:
    fields = GEMMA3 | {"n_layers": 62, "hidden_size": 48, "embedding_scale": 48**0.5, "attention_scale": 12**-0.5}
    assert factor(describe(**fields), "layers.0.attention.q_norm") == 1


def test_phi3_holds_q_k_and_v_in_one_tensor_and_gate_and_up_in_another(tmp_path: Path) -> None:
    decoder = DECODERS["phi3: partial, biases, scores"]
    _write(tmp_path, decoder, "f32")
    data = (tmp_path / "model.gguf").read_bytes()
    tensors = parse(memoryview(data), BuildError).tensors
    assert tensors["blk.1.attn_qkv.weight"].shape == (64 + 32 + 32, 64)
    assert tensors["blk.1.attn_qkv.bias"].shape == (128,)
    assert tensors["blk.1.ffn_up.weight"].shape == (2 * 96, 64)
    assert not [name for name in tensors if "gate" in name or "attn_q." in name]
    values = np.frombuffer(data, "<f4", 192 * 64, tensors["blk.1.ffn_up.weight"].start).reshape(192, 64)
    weights = RandomWeights(decoder)
    assert np.array_equal(values[:96], weights.rows("layers.1.mlp.gate", 0, 96))
    assert np.array_equal(values[96:], weights.rows("layers.1.mlp.up", 0, 96))


def test_both_lists_of_longrope_are_the_decoders(tmp_path: Path) -> None:
    _write(tmp_path, DECODERS["phi3: beyond the original context"], "f16")
    data = (tmp_path / "model.gguf").read_bytes()
    found = parse(memoryview(data), BuildError)
    for name in ("rope_factors_long.weight", "rope_factors_short.weight"):
        values = np.frombuffer(data, "<f4", 8, found.tensors[name].start)
        assert np.array_equal(values, np.array(LONG.factors, np.float32))
    assert found.keys["phi3.rope.scaling.attn_factor"] == np.float32(1.19)
    assert found.keys["phi3.rope.scaling.original_context_length"] == 128


KEYS: list[tuple[str, dict[str, float | str | int]]] = [
    ("phi3: partial, within the original context", {"phi3.rope.dimension_count": 12}),
    (
        "gemma2",
        {
            "gemma2.attention.sliding_window": 24,
            "gemma2.attn_logit_softcapping": 4.0,
            "gemma2.final_logit_softcapping": 6.0,
        },
    ),
    (
        "gemma3: linear rope on global layers",
        {
            "gemma3.attention.sliding_window": 24,
            "gemma3.rope.freq_base": 1e6,
            "gemma3.rope.freq_base_swa": 1e4,
            "gemma3.rope.scaling.type": "linear",
            "gemma3.rope.scaling.factor": LINEAR.factor,
        },
    ),
]

KEYS += [
    (
        "llama: yarn",
        {
            "llama.rope.scaling.type": "yarn",
            "llama.rope.scaling.factor": 8.0,
            "llama.rope.scaling.original_context_length": 64,
            "llama.rope.scaling.attn_factor": np.float32(1.21 / (1 + 0.1 * np.log(8))),
        },
    ),
    (
        "mistral3",
        {
            "mistral3.rope.scaling.attn_factor": np.float32(1 / (1 + 0.1 * np.log(8))),
            "mistral3.rope.scaling.yarn_beta_fast": 1.5,
            "mistral3.rope.scaling.yarn_beta_slow": 0.125,
            "mistral3.rope.scaling.original_context_length": 64,
            "mistral3.attention.temperature_scale": np.float32(0.3),
        },
    ),
    (
        "stablelm",
        {
            "stablelm.attention.layer_norm_epsilon": np.float32(1e-5),
            "stablelm.rope.dimension_count": 4,
            "stablelm.use_parallel_residual": False,
        },
    ),
    ("mistral3: a plain rope", {"mistral3.rope.scaling.original_context_length": 64}),
    (
        "granite",
        {
            "granite.embedding_scale": 12.0,
            "granite.attention.scale": np.float32(0.1),
            "granite.residual_scale": np.float32(0.22),
            "granite.logit_scale": 8.0,
        },
    ),
    (
        "olmo2: windows, yarn on the other layers",
        {"olmo2.attention.sliding_window": 24, "olmo2.rope.scaling.factor": 8.0},
    ),
    ("exaone4: of 64 layers", {"exaone4.attention.sliding_window": 24, "exaone4.block_count": 64}),
]


KEYS += [
    (
        "gemma4",
        {
            "gemma4.attention.shared_kv_layers": 2,
            "gemma4.attention.head_count_kv": 2,
            "gemma4.attention.key_length": 32,
            "gemma4.attention.value_length_swa": 16,
            "gemma4.embedding_length_per_layer_input": 32,
            "gemma4.rope.dimension_count": 32,
            "gemma4.rope.dimension_count_swa": 16,
            "gemma4.rope.freq_base": 1e6,
            "gemma4.final_logit_softcapping": 6.0,
        },
    ),
    (
        "gemma4: untied, no inputs, nothing scaled, other KV heads",
        {"gemma4.embedding_length_per_layer_input": 0, "gemma4.final_logit_softcapping": 0.0},
    ),
    (
        "gemma4: nothing shared, heads and MLPs of one size, a plain rope",
        {"gemma4.attention.shared_kv_layers": 0, "gemma4.feed_forward_length": 96},
    ),
]


@pytest.mark.parametrize(("name", "expected"), KEYS)
def test_the_keys_of_an_architecture(name: str, expected: dict[str, float | str | int], tmp_path: Path) -> None:
    _write(tmp_path, DECODERS[name], "f32")
    found = parse(memoryview((tmp_path / "model.gguf").read_bytes()), BuildError).keys
    assert expected.items() <= found.items()
    assert architecture(name) == "gemma4" or not [key for key in found if key.endswith("sliding_window_pattern")]


def _list(name: str, key: str) -> list[int]:
    value = metadata(Model("tiny", DECODERS[name], "f32"), "f32")[f"{architecture(name)}.{key}"]
    assert isinstance(value, np.ndarray)
    return [int(number) for number in value]


def test_numbers_that_differ_are_a_list() -> None:
    assert _list("gemma4", "feed_forward_length") == [96] * 4 + [192] * 2
    other = "gemma4: untied, no inputs, nothing scaled, other KV heads"
    assert _list(other, "attention.head_count_kv") == [2, 1] * 3


@pytest.mark.parametrize("turned", [1, 4, None])
def test_a_table_says_which_pairs_turn(turned: int | None) -> None:
    (table,) = tables(gemma4(turned=turned)).values()
    turning = turned or 16
    assert table.tolist() == [1.0] * turning + [float(np.float32(1e30))] * (16 - turning)


def test_a_pattern_that_llama_cpp_does_not_assume_is_written() -> None:
    def pattern(name: str) -> list[int]:
        return _list(name, "attention.sliding_window_pattern")

    assert pattern("gemma4: scores") == [1, 1, 0, 0]
    assert pattern("gemma2: windows on odd layers, linear rope, scores") == [0, 1, 0, 1]
    assert pattern("gemma2: no windows") == [1, 1, 1, 1]  # as long as the context
    assert pattern("gemma3: three to one, softcap, untied, scores") == [1, 1, 1, 0] * 3


@pytest.mark.parametrize("layers", [40, 80])
def test_fused_values_are_as_sensitive_as_values(layers: int) -> None:
    fields = {"n_layers": layers, "hidden_size": 256, "n_heads": 4, "head_dim": 64, "intermediate_size": 256}
    decoder = describe(**fields, rope=rope(dim=48))
    kinds = {name: tensor.kind for name, tensor in place(decoder, "q4_k_m").canonical.items()}
    for role in ("q", "k", "v"):
        assert kinds[f"layers.0.attention.{role}"] == "q6_K"
        assert kinds[f"layers.{layers // 8}.attention.{role}"] == "q4_K"
    assert {kinds[f"layers.{layer}.mlp.up"] for layer in range(layers)} == {"q4_K"}


def _write(folder: Path, decoder: Decoder, scheme: str) -> Any:
    weights = RandomWeights(decoder)
    writer = GgufTarget().open(folder, Model("tiny", decoder, "f32"), scheme)
    try:
        for tensor, start, stop in blocks(decoder):
            writer.write(tensor, start, weights.rows(tensor, start, stop))
        return writer.finish()
    finally:
        writer.abort()
