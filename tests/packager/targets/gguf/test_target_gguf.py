"""The GGUF target: types, layout and bytes against llama.cpp's own, reading back, and what must be refused."""

from __future__ import annotations

import hashlib
import platform
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import LFM2, Positions, describe
from gguf_decoders import gemma4
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope
from edgepack.errors import BuildError, EngineMissingError, ExtraMissingError, UsageError
from edgepack_packager import targets
from edgepack_packager.checkpoint.gguf.dequantize import dequantize
from edgepack_packager.checkpoint.gguf.names import gguf_name
from edgepack_packager.checkpoint.gguf.parse import parse
from edgepack_packager.checkpoint.weights import blocks
from edgepack_packager.targets import Model, Target, Written
from edgepack_packager.targets.gguf import GgufTarget, header
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.layout import Layout, Tensor, place
from edgepack_packager.targets.gguf.quantize import encode, to_bf16
from edgepack_packager.targets.gguf.reader import GgufReader
from edgepack_packager.targets.gguf.recipe import FORMATS, GRIDS, K_QUANTS, SCHEMES, Kind, choices
from edgepack_runtimes.gguf import GgufRuntime

LLAMA3 = Llama3Scaling(factor=32.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=64)

Array = NDArray[np.float32]


def decoder(**changes: Any) -> Decoder:
    facts: dict[str, Any] = {
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "n_layers": 3,
        "hidden_size": 256,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 64,
        "intermediate_size": 512,
        "n_vocab": 96,
        "context": 512,
        "norm_eps": 1e-5,
        "rope": Rope(theta=10000.0, dim=64),
        "tied": True,
    }
    if "pattern" in changes:
        facts.pop("rope")
    return describe(**facts | changes)


ROPE_FACTORS = "rope_freqs.weight"

NARROW = {"hidden_size": 96, "n_heads": 2, "n_kv_heads": 1, "head_dim": 48, "rope": Rope(theta=10000.0, dim=48)}
EVERYTHING = {
    "tied": False,
    "qkv_bias": True,
    "output_bias": True,
    "mlp_bias": True,
    "rope": Rope(theta=500000.0, dim=64, scaling=LLAMA3),
}

WHOLE = Positions(Rope(theta=10000.0, dim=64))
LONGROPE = LongRopeScaling(factors=tuple(1 + 0.1 * i for i in range(24)), magnitude=1.2, original_context=64)
GEMMA = {
    "n_layers": 8,
    "activation": "gelu_tanh",
    "norms": "both",
    "embedding_scale": 16.0,
    "pattern": (Positions(Rope(theta=10000.0, dim=64), 24), WHOLE),
}

GEMMA4: dict[str, Any] = {
    "head_dims": (64, 128),
    "mlp": 256,
    "inputs": 256,
    "hidden_size": 256,
    "n_vocab": 96,
    "embedding_scale": 16.0,
    "wide": True,
}


def tensor(name: str, shape: tuple[int, ...]) -> Array:
    """Values that every numpy makes: a hash of name and position, spread over +-1/16 in bf16's precision."""
    count = int(np.prod(shape))
    bits = np.arange(count, dtype=np.uint64) + np.uint64(zlib.crc32(name.encode()) << 32)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(0xBF58476D1CE4E5B9)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(0x94D049BB133111EB)
    values = ((bits >> np.uint64(40)).astype(np.float32) / np.float32(2**24) - np.float32(0.5)) / np.float32(8)
    return (to_bf16(values).astype(np.uint32) << 16).view(np.float32).reshape(shape)


def write(
    folder: Path, facts: Decoder, scheme: str, source: Callable[[str, tuple[int, ...]], Array] = tensor
) -> Written:
    shapes = dict(facts.tensors())
    writer = GgufTarget().open(folder, Model("tiny", facts, "bf16"), scheme)
    try:
        for name, start, stop in blocks(facts):
            writer.write(name, start, source(name, shapes[name])[start:stop])
        return writer.finish()
    finally:
        writer.abort()


def digest(path: Path) -> str:
    """Name, type, shape and bytes of every tensor of the decoder, in the order of the names."""
    data = path.read_bytes()
    found = hashlib.sha256()
    tensors = parse(memoryview(data), BuildError).tensors
    # llama3's factors are a ratio of powers, whose last bit may differ between processors
    tensors.pop(ROPE_FACTORS, None)
    for info in sorted(tensors.values(), key=lambda info: info.name):
        found.update(f"{info.name} {info.type} {info.shape}".encode())
        found.update(data[info.start : info.start + info.shape[0] * info.row_bytes])
    return found.hexdigest()[:16]


# What llama.cpp's own llama_model_quantize makes of the f32 file (build 11549, x86-64, from its source). Of the iq
# schemes, q2_k and q3_k_m: the types by its llama_tensor_get_type, compiled alone, the bytes by ggml_quantize_chunk. Of
# lfm2 and gemma4 all is what llama_model_quantize of llama-cpp-python 0.3.36 makes, of gemma4 from the bf16 file, as it
# leaves one matrix in the type that it has.
LLAMA_CPP: dict[tuple[str, str], str] = {
    ("tied", "f16"): "2bdfc7cf7d983b72",
    ("tied", "bf16"): "d91ddd398ce9ad37",
    ("tied", "q8_0"): "a42c5ef3742a5030",
    ("tied", "q4_0"): "cc7ac76081bac6cd",
    ("tied", "q4_k_m"): "5f1e7415557c76a0",
    ("tied", "q5_k_m"): "172fa2eaf227cad8",
    ("tied", "q6_k"): "689e6ac6baada7e3",
    ("tied", "q2_k"): "4a6e04d92ac939d2",
    ("tied", "q3_k_m"): "958199113f0bc3b4",
    ("tied", "iq3_s"): "16ae980863deef7d",
    ("tied", "iq4_xs"): "f98df7f21c128b2c",
    ("tied", "iq4_nl"): "bfc7e54affcd535f",
    ("everything", "f16"): "31e16b0e1b4002ac",
    ("everything", "bf16"): "3a9a47f73de7a504",
    ("everything", "q8_0"): "341b19e87c3651a5",
    ("everything", "q4_0"): "9a1f33cfcf6082cc",
    ("everything", "q4_k_m"): "04642b8a93a90c46",
    ("everything", "q5_k_m"): "fd8f5738ab178fd7",
    ("everything", "q6_k"): "9a664332b00a12c1",
    ("everything", "q2_k"): "5f3bec1228902861",
    ("everything", "q3_k_m"): "4ff955e88d540cc9",
    ("everything", "iq3_s"): "5c0217b40f84f641",
    ("everything", "iq4_xs"): "d4f87690b2e5e7a8",
    ("everything", "iq4_nl"): "22083aa140268533",
    ("narrow", "f16"): "64061f666d830241",
    ("narrow", "bf16"): "ed47134d1d0b27f0",
    ("narrow", "q8_0"): "56b0728ed15dea43",
    ("narrow", "q4_0"): "daec52b461dfa318",
    ("narrow", "q4_k_m"): "878f7a7ad3ce500f",
    ("narrow", "q5_k_m"): "b56659d0f594a3d7",
    ("narrow", "q6_k"): "56b0728ed15dea43",
    ("narrow", "q2_k"): "daec52b461dfa318",
    ("narrow", "q3_k_m"): "1be8f1a581c6b68e",
    ("narrow", "iq3_s"): "daecea7dffd06846",
    ("narrow", "iq4_xs"): "daecea7dffd06846",
    ("narrow", "iq4_nl"): "daecea7dffd06846",
    ("16 layers", "f16"): "28645a8b1124d1fb",
    ("16 layers", "bf16"): "318760c9cc9b6d56",
    ("16 layers", "q8_0"): "16f7850e4a62a7c2",
    ("16 layers", "q4_0"): "0592f6e09ff644b6",
    ("16 layers", "q4_k_m"): "c9fc6ae6c32c2bce",
    ("16 layers", "q5_k_m"): "fe051b29cc7b535d",
    ("16 layers", "q6_k"): "e512e1a6a6d92ed4",
    ("16 layers", "q2_k"): "e2eda756ad4d37e7",
    ("16 layers", "q3_k_m"): "6d570cb0de1023b0",
    ("16 layers", "iq3_s"): "d22b015cef35f839",
    ("16 layers", "iq4_xs"): "b3907a8e1d2e6ee9",
    ("16 layers", "iq4_nl"): "b41b7a68e2051a1a",
    ("qwen2", "f16"): "46a042f6f3dc9775",
    ("qwen2", "bf16"): "332e5a9ab9ffdbe2",
    ("qwen2", "q8_0"): "d36ec677d56d9544",
    ("qwen2", "q4_0"): "591a4c1a4bd47eb2",
    ("qwen2", "q4_k_m"): "e99525a8733313cc",
    ("qwen2", "q5_k_m"): "c4d5a788d5ab5da9",
    ("qwen2", "q6_k"): "0f656f430e1424da",
    ("qwen2", "q2_k"): "bc6e2e752462dc40",
    ("qwen2", "q3_k_m"): "c9b2fa8f3cbbb91c",
    ("qwen2", "iq3_s"): "a5154e3db9ad5cc3",
    ("qwen2", "iq4_xs"): "ba156afa15b96e66",
    ("qwen2", "iq4_nl"): "33ab709a30fdfe27",
    ("qwen3", "f16"): "ced7facbf0600e73",
    ("qwen3", "bf16"): "890cac8bd8d2dd23",
    ("qwen3", "q8_0"): "3c78afdd49881d82",
    ("qwen3", "q4_0"): "52a0f96bd6abc4ae",
    ("qwen3", "q4_k_m"): "4595b29a0c58e016",
    ("qwen3", "q5_k_m"): "6909808ff6babe6a",
    ("qwen3", "q6_k"): "818d537e992f4bc9",
    ("qwen3", "q2_k"): "5c98f4cbbeb99eac",
    ("qwen3", "q3_k_m"): "cf57808c1fc022c8",
    ("qwen3", "iq3_s"): "dcacc1897b36eca6",
    ("qwen3", "iq4_xs"): "0ab32269f950f93d",
    ("qwen3", "iq4_nl"): "0ca6cf4ad791a695",
    ("phi3", "f16"): "85323f82bff744a3",
    ("phi3", "bf16"): "b1f41e1b72d9477c",
    ("phi3", "q8_0"): "b95120b85ba79a7f",
    ("phi3", "q4_0"): "fba88eb8bfd94441",
    ("phi3", "q4_k_m"): "658d84979521ab51",
    ("phi3", "q5_k_m"): "421cc5c3b7d21db6",
    ("phi3", "q6_k"): "02640157cdcdb304",
    ("phi3", "q2_k"): "4b3bcb339b6a509f",
    ("phi3", "q3_k_m"): "745080bf1b33445e",
    ("phi3", "iq3_s"): "5f7b981ed940f32b",
    ("phi3", "iq4_xs"): "55a55a0ac6c0dcd8",
    ("phi3", "iq4_nl"): "4fce3ffcfd7e3b66",
    ("smollm3", "f16"): "dfc11bf26595eb81",
    ("smollm3", "bf16"): "e622ad05132ab7f1",
    ("smollm3", "q8_0"): "e3bd60bae19637ba",
    ("smollm3", "q4_0"): "d77810f1df9ec81b",
    ("smollm3", "q4_k_m"): "840e74c01b96745d",
    ("smollm3", "q5_k_m"): "e7df550f8a792e05",
    ("smollm3", "q6_k"): "8c73e041c3681644",
    ("smollm3", "q2_k"): "e648d0d62043a3f7",
    ("smollm3", "q3_k_m"): "993f870d7e9d0837",
    ("smollm3", "iq3_s"): "397e27fa11558914",
    ("smollm3", "iq4_xs"): "b12abb6162ec5ea8",
    ("smollm3", "iq4_nl"): "3a0d3d9fc46db64e",
    ("gemma2", "f16"): "d2f63d0e9b4e3d33",
    ("gemma2", "bf16"): "cf7c25b288349320",
    ("gemma2", "q8_0"): "bd99adef215d97ea",
    ("gemma2", "q4_0"): "df57ea282d77c571",
    ("gemma2", "q4_k_m"): "1e6ab929ca4be890",
    ("gemma2", "q5_k_m"): "bbbd482589682c7e",
    ("gemma2", "q6_k"): "15a21807a0a632fd",
    ("gemma2", "q2_k"): "4f672e831350e327",
    ("gemma2", "q3_k_m"): "c9804c41bd3261fd",
    ("gemma2", "iq3_s"): "144fcb7a60960817",
    ("gemma2", "iq4_xs"): "a3daa5699e006c1c",
    ("gemma2", "iq4_nl"): "7c5614c62ccdfb10",
    ("gemma3", "f16"): "54e169159d18b1e3",
    ("gemma3", "bf16"): "3442a7868f63a313",
    ("gemma3", "q8_0"): "b650c5e4aa38788f",
    ("gemma3", "q4_0"): "1a843719a0076e71",
    ("gemma3", "q4_k_m"): "e22fd843d6d93414",
    ("gemma3", "q5_k_m"): "15ab79e8763cf6f3",
    ("gemma3", "q6_k"): "4b70dbc6f5414b4c",
    ("gemma3", "q2_k"): "709702391614ca25",
    ("gemma3", "q3_k_m"): "d6142b3fff048735",
    ("gemma3", "iq3_s"): "b6bace69981bd908",
    ("gemma3", "iq4_xs"): "08841e3278a316d1",
    ("gemma3", "iq4_nl"): "c9890825f2a68e69",
    ("gemma4", "bf16"): "a7a6216dbae20f8b",
    ("gemma4", "q8_0"): "7f901ba1d50f47a8",
    ("gemma4", "q4_0"): "82b4c1a4f66b3295",
    ("gemma4", "q4_k_m"): "3ab06a4a90ccbb7b",
    ("gemma4", "q5_k_m"): "4c90ca7fc3cf94b0",
    ("gemma4", "q6_k"): "8ebea04b985f0ee5",
    ("gemma4", "q2_k"): "8656d75d4a15b42a",
    ("gemma4", "q3_k_m"): "940e02cd9de2bc38",
    ("gemma4", "iq3_s"): "8dba986f720d5992",
    ("gemma4", "iq4_xs"): "451cf91827891d10",
    ("gemma4", "iq4_nl"): "4b9595eec739faf0",
    ("gemma4 untied", "bf16"): "6d3214d69e26b2ec",
    ("gemma4 untied", "q8_0"): "1ebf98a513a69067",
    ("gemma4 untied", "q4_0"): "2ea5894ab451c13c",
    ("gemma4 untied", "q4_k_m"): "407fa939f2ab583e",
    ("gemma4 untied", "q5_k_m"): "04a77fc02b780fc4",
    ("gemma4 untied", "q6_k"): "4980860af59eac76",
    ("gemma4 untied", "q2_k"): "aec3950e1ad6449a",
    ("gemma4 untied", "q3_k_m"): "469481b847d8a119",
    ("gemma4 untied", "iq3_s"): "d729f57b10cd7e91",
    ("gemma4 untied", "iq4_xs"): "5bf201082296888d",
    ("gemma4 untied", "iq4_nl"): "d7bf326d7eabb1cc",
    ("lfm2", "q3_k_m"): "ccd5b1a682bad9e1",
    ("lfm2", "q4_k_m"): "b2bc1d91ab295aac",
    ("lfm2", "q5_k_m"): "83626297037fe5ca",
}

MODELS: dict[str, Decoder] = {
    "tied": decoder(),
    "everything": decoder(**EVERYTHING),
    "narrow": decoder(**NARROW, intermediate_size=288),
    "16 layers": decoder(n_layers=16, intermediate_size=256, n_vocab=32, tied=False),
    "qwen2": decoder(qkv_bias=True),
    "qwen3": decoder(qk_norm="head", tied=False),
    "phi3": decoder(n_layers=9, intermediate_size=256, rope=Rope(theta=10000.0, dim=48, scaling=LONGROPE)),
    "smollm3": decoder(n_layers=4, pattern=(WHOLE, WHOLE, WHOLE, Positions(None))),
    "gemma2": decoder(**GEMMA, attention_softcap=50.0, logits_softcap=30.0),
    "gemma3": decoder(**GEMMA, qk_norm="head"),
    "lfm2": decoder(**LFM2 | {"n_layers": 16, "n_kv_heads": 1, "convolving": (0, 1, 3, 4, 6, 7, 9, 11, 13, 15)}),
    "gemma4": gemma4("sssfsssf sssfsssf", **GEMMA4),
    "gemma4 untied": gemma4("sssfsssf sssfsssf", **GEMMA4, tied=False, kv_heads=(1, 2)),
}


@pytest.mark.parametrize(("name", "scheme"), sorted(LLAMA_CPP))
def test_every_tensor_has_the_bytes_of_llama_cpps_own_quantizer(name: str, scheme: str, tmp_path: Path) -> None:
    write(tmp_path, MODELS[name], scheme)
    assert digest(tmp_path / "model.gguf") == LLAMA_CPP[name, scheme]


def test_the_mixture_gives_more_bits_to_some_layers() -> None:
    facts = decoder(n_layers=16)
    kinds = {choice.tensor: choice.kind for choice in choices(facts, "q4_k_m")}
    favored = {0, 1, 4, 7, 10, 13, 14, 15}
    for role in ("attention.v", "mlp.down"):
        assert {layer for layer in range(16) if kinds[f"layers.{layer}.{role}"] == "q6_K"} == favored
    assert kinds["embedding"] == "q6_K"
    assert {kinds[f"layers.{layer}.attention.q"] for layer in range(16)} == {"q4_K"}


def test_the_70b_rule() -> None:
    facts = decoder(n_layers=80, tied=False)
    kinds = {choice.tensor: choice.kind for choice in choices(facts, "q4_k_m")}
    assert kinds["layers.10.attention.v"] == "q5_K"
    assert kinds["layers.10.mlp.down"] == "q4_K"
    assert kinds["layers.12.attention.v"] == "q6_K"
    assert kinds["embedding"] == "q4_K"
    assert kinds["head"] == "q6_K"
    # which llama.cpp tells by the number of layers: of a qwen2 alone, of a llama with grouped heads
    kinds = {choice.tensor: choice.kind for choice in choices(decoder(n_layers=80, n_kv_heads=4), "q4_k_m")}
    assert kinds["layers.10.attention.v"] == "q4_K"
    qwen2 = decoder(n_layers=80, n_kv_heads=4, qkv_bias=True)
    kinds = {choice.tensor: choice.kind for choice in choices(qwen2, "q4_k_m")}
    assert kinds["layers.10.attention.v"] == "q5_K"


@pytest.mark.parametrize(
    ("scheme", "calibrated", "expected"),
    [
        ("q2_k", True, {"q6_K": 1, "q2_K": 64, "q3_K": 32, "q4_K": 16}),
        ("q3_k_m", False, {"q6_K": 1, "q3_K": 64, "q4_K": 45, "q5_K": 3}),
        ("iq3_s", True, {"q6_K": 1, "iq3_s": 96, "q4_K": 16}),
        ("iq4_xs", False, {"q6_K": 1, "iq4_xs": 94, "q5_K": 18}),
        ("iq4_xs", True, {"q6_K": 1, "iq4_xs": 96, "q5_K": 16}),
        ("iq4_nl", False, {"q6_K": 1, "iq4_nl": 94, "q5_K": 18}),
        ("iq4_nl", True, {"q6_K": 1, "iq4_nl": 96, "q5_K": 16}),
    ],
)
def test_values_that_four_heads_share_and_a_calibration_have_rules_of_their_own(
    scheme: str, calibrated: bool, expected: dict[str, int]
) -> None:
    """The numbers are those of llama_tensor_get_type, compiled from llama.cpp's source."""
    facts = decoder(n_layers=16, n_heads=8, n_kv_heads=2, head_dim=32, rope=Rope(theta=10000.0, dim=32))
    found = [choice.kind for choice in choices(facts, scheme, calibrated=calibrated) if len(choice.shape) == 2]
    assert {kind: found.count(kind) for kind in found} == expected


def test_what_reads_the_embeddings_for_all_layers_keeps_16_bits() -> None:
    for wide, half in ((True, "bf16"), (False, "f16")):
        facts = gemma4("ssf", **GEMMA4 | {"wide": wide})
        for scheme in ("q8_0", "q4_k_m", "q2_0"):
            found = {choice.tensor: choice for choice in choices(facts, scheme)}
            assert (found["inputs.projection"].kind, found["inputs.projection"].fallback) == (half, None)
            assert found["layers.0.scale"].kind == found["inputs.norm"].kind == "f32"
    assert {choice.kind for choice in choices(facts, "f32")} == {"f32"}


def test_16_bits_hold_nothing_that_is_multiplied() -> None:
    facts = gemma4("ssf", **GEMMA4 | {"embedding_scale": 16.0625})
    kinds = {choice.tensor: choice.kind for choice in choices(facts, "bf16") if len(choice.shape) == 2}
    assert {name.split(".", 2)[-1] for name, kind in kinds.items() if kind == "f32"} == {"inputs.gate"}
    assert "f32" not in {choice.kind for choice in choices(MODELS["gemma4"], "bf16") if len(choice.shape) == 2}


def test_what_is_looked_up_lies_on_no_grid_of_a_few_levels() -> None:
    for scheme in GRIDS:
        kinds = {choice.tensor: choice.kind for choice in choices(decoder(tied=False), scheme)}
        assert (kinds["embedding"], kinds["head"], kinds["layers.0.mlp.up"]) == ("q4_K", "q6_K", scheme)
        kinds = {choice.tensor: choice.kind for choice in choices(MODELS["gemma4 untied"], scheme)}
        assert (kinds["inputs.embedding"], kinds["layers.0.inputs.out"]) == ("q4_K", scheme)


def test_fallbacks_are_reported() -> None:
    facts = decoder(**NARROW, intermediate_size=172)
    found = {fallback.tensor: fallback for fallback in place(facts, "q4_k_m").fallbacks}
    assert found["embedding"].scheme == "q8_0"
    assert found["layers.1.attention.q"].scheme == "q5_0"
    assert found["layers.1.mlp.down"].scheme == "f16"
    assert "172" in found["layers.1.mlp.down"].reason
    found = {fallback.tensor: fallback.scheme for fallback in place(decoder(**NARROW), "iq3_s").fallbacks}
    assert (found["embedding"], found["layers.1.attention.q"]) == ("q8_0", "iq4_nl")
    assert place(facts, "f16").fallbacks == ()
    assert place(decoder(), "q4_k_m").fallbacks == ()


@pytest.mark.parametrize("changes", [{}, {"hidden_size": 288}, {"intermediate_size": 300}, {"n_heads": 2}])
def test_uniform_names(changes: dict[str, Any]) -> None:
    model = Model("tiny", decoder(**changes), "bf16")
    target = GgufTarget()
    assert [target.scheme(name, model) for name in ("f32", "f16", "q8", "q4")] == ["f32", "f16", "q8_0", "q4_k_m"]
    assert [target.scheme(name, model) for name in target.schemes] == list(SCHEMES)
    # ggml rounds activations to the type of 16-bit weights
    assert target.scheme("f16", Model("wide", decoder(**changes, wide=True), "bf16")) == "bf16"
    with pytest.raises(UsageError, match="int4"):
        target.scheme("int4", model)


def test_it_is_registered() -> None:
    target: Target = targets.find("gguf")
    assert isinstance(target, GgufTarget)
    assert target.packages[0] == "numpy"


HARD: dict[str, Array] = {
    "normal": tensor("normal", (64, 512)),
    "unrounded": np.sin(np.arange(64 * 512, dtype=np.float32)).reshape(64, 512),
    "ties between signs": (np.arange(64 * 512).reshape(64, 512) % 17 - 8).astype(np.float32) / 8,
    "halves": (np.arange(64 * 512).reshape(64, 512) % 509 - 254).astype(np.float32) / 2,
    "one sided": np.abs(tensor("one sided", (64, 512))),
    "outliers": tensor("outliers", (64, 512)) ** 5 * 1e6,
    "constant": np.full((2, 512), 0.3, np.float32),
    "zero": np.zeros((2, 512), np.float32),
    "single block": tensor("single", (1, 32)),
}


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
@pytest.mark.parametrize("values", HARD)
def test_numpy_writes_ggmls_bytes(kind: Kind, values: str) -> None:
    rows = HARD[values]
    before = rows.copy()
    assert np.array_equal(encode(kind, rows, "rows"), engine().quantize(kind, rows))
    assert np.array_equal(rows, before)


on_x86 = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"),
    reason="elsewhere ggml fuses products and sums",
)

HARD_IN_256: dict[str, Array] = {
    **{name: rows for name, rows in HARD.items() if rows.shape[1] >= 256},
    "silent groups": np.where(np.arange(512) // 16 % 3 == 0, 0, tensor("groups", (64, 512))).astype(np.float32),
    "loud groups": tensor("loud", (64, 512)) * np.float32(10) ** (np.arange(512) // 32 % 7).astype(np.float32),
    "subnormal": tensor("subnormal", (64, 512)) * np.float32(1e-40),
    "next to nothing": tensor("nothing", (64, 512)) * np.float32(1e-13),
    "far from zero": tensor("far", (64, 512)) * np.float32(1e-4) - 1000,
    "one lane": tensor("lane", (1, 256)),
    "a block more than a pass": tensor("pass", (257, 256)),
}


@pytest.mark.parametrize("kind", sorted(GRIDS))
@pytest.mark.parametrize("values", [name for name in HARD_IN_256 if name != "subnormal"])
def test_what_is_for_grids_has_ggmls_bytes_for_other_weights_too(kind: Kind, values: str) -> None:
    """But where the inverse of the scale is an infinity, which ggml makes a whole number: C leaves open which."""
    rows = HARD_IN_256[values]
    assert np.array_equal(encode(kind, rows, "rows"), engine().quantize(kind, rows))


IQ: tuple[Kind, ...] = ("iq3_s", "iq4_nl", "iq4_xs")
SEARCHED: list[Kind] = [*sorted(K_QUANTS), *IQ]


@on_x86
@pytest.mark.parametrize("kind", SEARCHED)
@pytest.mark.parametrize("values", HARD_IN_256)
def test_what_is_searched_has_ggmls_bytes(kind: Kind, values: str) -> None:
    rows = HARD_IN_256[values]
    before = rows.copy()
    assert np.array_equal(encode(kind, rows, "rows"), engine().quantize(kind, rows))
    assert np.array_equal(rows, before)


@on_x86
@pytest.mark.parametrize("kind", ["q2_K", "q3_K", *IQ])
@pytest.mark.parametrize("values", HARD_IN_256)
def test_with_an_importance_too(kind: Kind, values: str) -> None:
    rows = HARD_IN_256[values]
    counts = np.abs(tensor("counts", (rows.shape[1],))) + np.float32(1e-3)
    assert np.array_equal(encode(kind, rows, "rows", counts), engine().quantize(kind, rows, counts))


def test_an_importance_of_another_width_is_refused() -> None:
    with pytest.raises(UsageError, match=r"importance of 512 columns has the shape \(511,\)"):
        engine().quantize("q2_K", HARD["normal"], np.ones(511, np.float32))


@on_x86
def test_behind_a_silent_group_iq3_s_is_right_where_ggmls_is_not() -> None:
    """ggml leaves a group of zeros out, and writes the others of its block in the places before their own."""
    rows = HARD["normal"].copy()
    rows[:, 64:96] = 0
    ours, theirs = (
        dequantize("IQ3_S", data) for data in (encode("iq3_s", rows, "rows"), engine().quantize("iq3_s", rows))
    )
    error = [np.linalg.norm(values - rows) / np.linalg.norm(rows) for values in (ours, theirs)]
    assert error[0] < 0.2 < 0.5 < error[1]


@on_x86
@pytest.mark.parametrize("kind", SEARCHED)
@given(seed=st.integers(0, 2**32 - 1), spread=st.floats(0, 6), power=st.integers(-30, 6), share=st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_what_is_searched_has_ggmls_bytes_at_random(
    kind: Kind, seed: int, spread: float, power: int, share: float
) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((4, 512)) * np.exp(spread * rng.standard_normal((4, 512)))
    rows *= (rng.random((4, 512)) < share) * 10.0**power
    found = np.clip(rows, -60000, 60000).astype(np.float32)
    # of iq3_s, ggml misplaces what follows a group of zeros
    found[:, ::32] += np.where(found[:, ::32] == 0, np.float32(10.0**power), np.float32(0))
    assert np.array_equal(encode(kind, found, "rows"), engine().quantize(kind, found))


def test_bf16_rounds_to_even_and_keeps_nan() -> None:
    values = np.array([1.0, 1.00390625, 1.01171875, -3.0e38, np.inf, np.nan, 1e-40], np.float32)
    expected = [0x3F80, 0x3F80, 0x3F82, 0xFF62, 0x7F80, 0x7FC0, 0x0001]
    assert to_bf16(values).tolist() == expected


def engine() -> GgufRuntime:
    engine = GgufRuntime()
    try:
        engine.engine_version()
    except EngineMissingError as error:
        pytest.skip(str(error))
    return engine


@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if scheme not in GRIDS])
@pytest.mark.parametrize("name", ["tied", "everything", "narrow"])
def test_reading_back_is_within_the_bound(name: str, scheme: str, tmp_path: Path) -> None:
    facts = MODELS[name]
    written = write(tmp_path, facts, scheme)
    reader = GgufTarget().read(tmp_path, facts)
    shapes = dict(facts.tensors())
    for tensor_name, start, stop in blocks(facts):
        expected = tensor(tensor_name, shapes[tensor_name])[start:stop].reshape(stop - start, -1)
        actual = reader.rows(tensor_name, start, stop).reshape(stop - start, -1)
        error = np.linalg.norm(actual - expected, axis=1)
        assert (error <= reader.bound(tensor_name) * np.linalg.norm(expected, axis=1)).all(), tensor_name
        if expected.shape[1] == 1 or scheme in ("f32", "bf16"):
            assert not error.any(), tensor_name
    reader.close()
    assert (tmp_path / "model.gguf").stat().st_size > written.weights_bytes >= written.tensor_bytes


@pytest.mark.parametrize("kind", ["q4_K", "q5_K", "q6_K"])
@pytest.mark.parametrize("units", ["sound", "any"])
def test_any_bytes_of_k_quants_mean_what_the_package_gguf_says(kind: Kind, units: str) -> None:
    """To the last bit; the half-precision units may be infinities, NaN and tiny."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as by_gguf

    rng = np.random.default_rng(5)
    rows = rng.integers(0, 256, (64, 3 * FORMATS[kind].block_bytes), dtype=np.uint8)
    if units == "sound":
        blocks = rows.reshape(-1, FORMATS[kind].block_bytes)
        where = slice(208, 210) if kind == "q6_K" else slice(0, 4)
        halves = rng.standard_normal((len(blocks), (where.stop - where.start) // 2)).astype("<f2")
        blocks[:, where] = halves.view(np.uint8)
    with np.errstate(all="ignore"):
        theirs = by_gguf(rows, GGMLQuantizationType[kind.upper()])
    ours = dequantize(kind.upper(), rows)
    assert ours.shape == theirs.shape == (64, 768)
    assert np.array_equal(ours, theirs, equal_nan=True)
    assert units == "any" or np.array_equal(ours.view(np.uint32), theirs.view(np.uint32))


def test_rows_in_the_middle_of_a_head(tmp_path: Path) -> None:
    write(tmp_path, decoder(), "f32")
    reader = GgufTarget().read(tmp_path, decoder())
    expected = tensor("layers.1.attention.q", (256, 256))
    for start, stop in [(0, 256), (31, 33), (64, 65), (127, 200), (255, 256), (5, 5)]:
        assert np.array_equal(reader.rows("layers.1.attention.q", start, stop), expected[start:stop])
    with pytest.raises(ValueError, match="rows 200 to 300"):
        reader.rows("layers.1.attention.q", 200, 300)
    reader.close()


def adversarial(block: int) -> Array:
    """Rows that are hard for a block format: the rest at half a step, one loud sub-block, one outlier, one sign."""
    rng = np.random.default_rng(7)
    rows = []
    for levels in (15, 16, 31, 32, 63, 127):
        row = np.full(512, 0.5 / levels, np.float32)
        row[::block] = 1
        rows += [row, -row, row * np.where(np.arange(512) % 2, 1, -1).astype(np.float32)]
    for quiet in (0.003, 0.01, 0.03, 0.1):
        row = rng.uniform(-quiet, quiet, 512).astype(np.float32)
        row[:32] = rng.uniform(-1, 1, 32)
        rows += [row, np.abs(row), -np.abs(row)]
    for power in (1, 3, 9):
        rows += list(rng.standard_normal((40, 512)) ** power)
    return np.stack([row / np.abs(row).max() for row in rows]).astype(np.float32)


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind != "f32"])
def test_the_bounds_hold_for_hard_rows(kind: Kind, tmp_path: Path) -> None:
    reader, encoded = _one_tensor(tmp_path, kind, adversarial(FORMATS[kind].block))
    error = np.linalg.norm(reader.rows(VALUE, 0, len(encoded)) - encoded, axis=1)
    allowed = reader.bound(VALUE) * np.linalg.norm(encoded, axis=1) + reader.floor(VALUE)
    assert (error <= allowed).all()
    assert error.any()
    reader.close()


@pytest.mark.parametrize("kind", [kind for kind in FORMATS if kind not in ("f32", "bf16")])
def test_the_floor_covers_rows_too_small_for_half_precision(kind: Kind, tmp_path: Path) -> None:
    rows = np.concatenate([adversarial(FORMATS[kind].block)[:20] * np.float32(10.0**-power) for power in range(2, 9)])
    reader, rows = _one_tensor(tmp_path, kind, rows)
    error = np.linalg.norm(reader.rows(VALUE, 0, len(rows)) - rows, axis=1)
    assert (error <= reader.bound(VALUE) * np.linalg.norm(rows, axis=1) + reader.floor(VALUE)).all()
    reader.close()


VALUE = "layers.0.attention.v"


def _one_tensor(folder: Path, kind: Kind, rows: Array) -> tuple[GgufReader, Array]:
    """A reader of a file whose only tensor is a value projection with these rows in this type."""
    rope = Rope(theta=10000.0, dim=len(rows))
    facts = decoder(hidden_size=rows.shape[1], n_heads=1, n_kv_heads=1, head_dim=len(rows), rope=rope)
    data = encode(kind, rows, VALUE).tobytes()
    only = Tensor(gguf_name(VALUE, choose(facts).name), rows.shape, kind, 0)
    path = folder / "one.gguf"
    path.write_bytes(header.encode({}, Layout((only,), {VALUE: only}, ())) + data)
    return GgufReader(path, facts), rows


def test_the_bound_is_tight_enough_to_find_a_swap(tmp_path: Path) -> None:
    facts = decoder()
    write(tmp_path, facts, "q4_0")
    reader = GgufTarget().read(tmp_path, facts)
    gate, up = (reader.rows(f"layers.0.mlp.{name}", 0, 512) for name in ("gate", "up"))
    error = np.linalg.norm(gate - up, axis=1) / np.linalg.norm(gate, axis=1)
    assert (error > reader.bound("layers.0.mlp.gate")).all()
    assert max(reader.bound(name) for name, _ in facts.tensors()) < 0.5
    reader.close()


def test_the_header(tmp_path: Path) -> None:
    facts = decoder(**EVERYTHING)
    write(tmp_path, facts, "q8_0")
    data = (tmp_path / "model.gguf").read_bytes()
    found = parse(memoryview(data), BuildError)
    assert found.keys == {
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": "tiny",
        "general.alignment": 32,
        "general.quantization_version": 2,
        "general.file_type": 7,
        "llama.block_count": 3,
        "llama.context_length": 512,
        "llama.embedding_length": 256,
        "llama.feed_forward_length": 512,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": float(np.float32(1e-5)),
        "llama.attention.key_length": 64,
        "llama.attention.value_length": 64,
        "llama.rope.freq_base": 500000.0,
        "llama.rope.dimension_count": 64,
        "llama.vocab_size": 96,
        "tokenizer.ggml.model": "no_vocab",
    }
    factors = found.tensors[ROPE_FACTORS]
    values = np.frombuffer(data, "<f4", 32, factors.start)
    assert values[0] == 1
    assert values[-1] == 32
    assert (np.diff(values) >= 0).all()
    assert found.tensors["blk.2.ffn_down.bias"].type == "F32"
    assert found.tensors["output.weight"].type == "Q8_0"


def test_linear_rope_and_tied_head(tmp_path: Path) -> None:
    write(tmp_path, decoder(rope=Rope(theta=10000.0, dim=64, scaling=LinearScaling(factor=4.0))), "f16")
    found = parse(memoryview((tmp_path / "model.gguf").read_bytes()), BuildError)
    assert found.keys["llama.rope.scaling.type"] == "linear"
    assert found.keys["llama.rope.scaling.factor"] == 4.0
    assert not {"output.weight", ROPE_FACTORS} & set(found.tensors)


def test_q_and_k_are_interleaved(tmp_path: Path) -> None:
    write(tmp_path, decoder(), "f32")
    data = (tmp_path / "model.gguf").read_bytes()
    found = parse(memoryview(data), BuildError).tensors["blk.0.attn_k.weight"]
    rows = np.frombuffer(data, "<f4", 128 * 256, found.start).reshape(128, 256)
    expected = tensor("layers.0.attention.k", (128, 256))
    for head in (0, 1):
        for pair in (0, 1, 31):
            assert np.array_equal(rows[64 * head + 2 * pair], expected[64 * head + pair])
            assert np.array_equal(rows[64 * head + 2 * pair + 1], expected[64 * head + pair + 32])


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, decoder(), "q4_0")
    assert (tmp_path / "one" / "model.gguf").read_bytes() == (tmp_path / "two" / "model.gguf").read_bytes()


@pytest.mark.parametrize(
    ("scheme", "value", "hint"),
    [("f16", 65520.0, "bf16"), ("f16", np.nan, "bf16"), ("q8_0", np.inf, "f32"), ("q8_0", 1e7, "f32")],
)
def test_a_value_that_the_type_cannot_hold(scheme: str, value: float, hint: str, tmp_path: Path) -> None:
    def source(name: str, shape: tuple[int, ...]) -> Array:
        rows = tensor(name, shape)
        if name == "layers.1.mlp.up":
            rows[300, 17] = value
        return rows

    with pytest.raises(BuildError, match=r"model\.gguf: layers\.1\.mlp\.up holds a value") as error:
        write(tmp_path, decoder(), scheme, source)
    assert hint in str(error.value)


def test_k_quants_refuse_nan(tmp_path: Path) -> None:
    def source(name: str, shape: tuple[int, ...]) -> Array:
        rows = tensor(name, shape)
        rows.reshape(-1)[-1] = np.nan if name == "embedding" else rows.reshape(-1)[-1]
        return rows

    with pytest.raises(BuildError, match="embedding holds a value that q6_K cannot"):
        write(tmp_path, decoder(), "q6_k", source)


@pytest.mark.parametrize("kind", SEARCHED)
def test_what_is_searched_refuses_scales_beyond_half_precision(kind: Kind) -> None:
    with pytest.raises(BuildError, match=f"rows holds a value that {kind} cannot"):
        encode(kind, HARD["normal"] * np.float32(1e12), "rows")


def test_f16_keeps_the_largest_value(tmp_path: Path) -> None:
    write(tmp_path, decoder(), "f16", lambda name, shape: np.full(shape, -65504, np.float32))
    reader = GgufTarget().read(tmp_path, decoder())
    assert (reader.rows("embedding", 0, 1) == -65504).all()
    reader.close()


def test_without_numba_what_quantises_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "numba", None)
    target = GgufTarget()
    model = Model("tiny", decoder(), "bf16")
    for scheme in ("q4_k_m", "q4_0", "q6_k", "q8_0"):
        with pytest.raises(ExtraMissingError, match=r"needs numba.*edgepack\[build\]"):
            target.check(model, scheme)
    for quant in ("f32", "f16", "bf16"):
        (tmp_path / quant).mkdir()
        target.check(model, target.scheme(quant, model))
        write(tmp_path / quant, decoder(), target.scheme(quant, model))


def test_a_writer_refuses_what_does_not_follow(tmp_path: Path) -> None:
    writer = GgufTarget().open(tmp_path, Model("tiny", decoder(), "f32"), "f32")
    rows = tensor("embedding", (96, 256))
    writer.write("embedding", 0, rows[:32])
    for name, start, wrong in [
        ("embedding", 64, rows[64:]),
        ("embedding", 32, rows),
        ("embedding", 32, rows[32:, :128]),
        ("layers.3.mlp.up", 0, rows),
        ("layers.0.attention.q", 0, rows[:32]),
    ]:
        with pytest.raises(BuildError, match=name):
            writer.write(name, start, wrong)
    with pytest.raises(BuildError, match="embedding got 32 of its 96 rows"):
        writer.finish()
    writer.abort()
    writer.abort()


def _damage(data: bytearray, at: bytes, shift: int, new: bytes) -> None:
    place_ = data.index(at) + len(at) + shift
    data[place_ : place_ + len(new)] = new


DAMAGES: dict[str, tuple[Callable[[bytearray], None], str]] = {
    "magic": (lambda data: _damage(data, b"GG", 0, b"XX"), "does not start with GGUF"),
    "version": (lambda data: _damage(data, b"GGUF", 0, b"\2"), "version 2"),
    "tensors": (lambda data: _damage(data, b"GGUF", 4, b"\xff" * 8), "announces"),
    "keys": (lambda data: _damage(data, b"GGUF", 12, b"\xff" * 8), "announces"),
    "key length": (lambda data: _damage(data, b"GGUF", 20, b"\xff" * 8), "ends inside its header"),
    "not utf-8": (lambda data: _damage(data, b"general.", 0, b"\xff"), "not UTF-8"),
    "key twice": (
        lambda data: _damage(data, b"llama.rope.", 0, b"freq_base\6\0\0\0\0\0\0\0\x10"),
        "value type|twice|ends",
    ),
    "value type": (lambda data: _damage(data, b"general.type", 0, b"\x63"), "value type 99"),
    "alignment": (lambda data: _damage(data, b"general.alignment", 4, b"\3"), "alignment 3"),
    "dimensions": (lambda data: _damage(data, b"token_embd.weight", 0, b"\5"), "5 dimensions"),
    "zero": (lambda data: _damage(data, b"token_embd.weight", 4, b"\0" * 8), "the shape"),
    "columns": (lambda data: _damage(data, b"token_embd.weight", 4, b"\1\1"), "the shape"),
    "type": (lambda data: _damage(data, b"token_embd.weight", 20, b"\x63"), "the type 99"),
    "offset": (lambda data: _damage(data, b"output_norm.weight", 16, b"\1"), "not aligned"),
    "overlap": (lambda data: _damage(data, b"output_norm.weight", 16, b"\0" * 8), "over another"),
    "outside": (lambda data: _damage(data, b"output_norm.weight", 20, b"\xff"), "inside output_norm.weight"),
    "name": (lambda data: _damage(data, b"blk.1.attn_q", -1, b"k"), "twice"),
    "cut": (lambda data: data.__delitem__(slice(len(data) - 4096, None)), "inside"),
    "cut header": (lambda data: data.__delitem__(slice(300, None)), "ends inside|announces"),
    "empty": (lambda data: data.clear(), "is empty"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_with_its_place(damage: str, tmp_path: Path) -> None:
    write(tmp_path, decoder(), "q8_0")
    path = tmp_path / "model.gguf"
    data = bytearray(path.read_bytes())
    change, message = DAMAGES[damage]
    change(data)
    path.write_bytes(data)
    with pytest.raises(BuildError, match=message) as error:
        GgufTarget().read(tmp_path, decoder())
    assert str(path) in str(error.value)


def test_a_missing_file_and_another_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"model\.gguf cannot be read"):
        GgufTarget().read(tmp_path, decoder())
    write(tmp_path, decoder(), "f32")
    for facts, name in [(decoder(tied=False), "head"), (decoder(n_vocab=97), "embedding")]:
        reader = GgufTarget().read(tmp_path, facts)
        with pytest.raises(BuildError, match=f"for {name}"):
            reader.rows(name, 0, 1)
        reader.close()


def test_the_size_is_known_before_a_byte_is_written(tmp_path: Path) -> None:
    writer = GgufTarget().open(tmp_path, Model("tiny", decoder(), "f32"), "q8_0")
    size = (tmp_path / "model.gguf").stat().st_size
    writer.abort()
    layout = place(decoder(), "q8_0")
    assert size - layout.data_bytes < 8192
    (tmp_path / "model.gguf").unlink()
    write(tmp_path, decoder(), "q8_0")
    assert (tmp_path / "model.gguf").stat().st_size == size
