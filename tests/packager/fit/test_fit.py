"""Fit: sizes to the byte of what is written, the published models' figures, and the answer that follows."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import decoders
import embedding_models
import msgspec
import pytest
from decoders import Positions
from models import make_llama, make_model
from oracle_models import ORACLE_MODELS, PHI4, Fixture

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Rope
from edgepack.cli import main
from edgepack.device.hardware import Hardware
from edgepack.device.memory import Payload, kv_bytes, needed
from edgepack.device.seconds import Turn
from edgepack.errors import BuildError, UsageError
from edgepack.runtime import Options
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.gguf.parse import parse
from edgepack_packager.fit import Fit, Row, at_best, devices, element_type, fit
from edgepack_packager.source import read_config
from edgepack_packager.targets import Model, Request
from edgepack_packager.text import read_text
from edgepack_packager.write import write

ANY = devices.with_memory(1 << 40)


def row(found: Fit, variant: str) -> Row:
    return next(each for each in found.rows if each.id == variant)


# To the byte: what is computed from a config against what the writers write

CHECKPOINTS: dict[str, Fixture] = {
    **ORACLE_MODELS,
    "embeddinggemma": Fixture(embedding_models.MODELS["gemma"]),
    # In the type that its config names.
    "phi4": Fixture(partial(make_model, fields=PHI4, dtype="f32"), 512),
    # Rows that fill no block and no group, whose tensors fall back.
    "narrow": Fixture(partial(make_llama, hidden=96, heads=6, kv_heads=3, intermediate=176, n_vocab=390)),
}


@dataclass(frozen=True)
class Written:
    """What was computed from a model's config, and the folder of the variants that were written from its weights."""

    found: Fit
    dtype: str
    folder: Path


@pytest.fixture(scope="module", params=CHECKPOINTS)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Written:
    folder, fixture = tmp_path_factory.mktemp("written"), CHECKPOINTS[request.param]
    source = fixture.make(folder / "source")
    config = read_config(str(source))
    found = fit(config, ANY, fixture.context)
    assert found.rows
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint, found.decoder.context)
        text = read_text(source, config, weights.decoder)
        model = Model("model", weights.decoder, weights.dtype, config, text)
        write(
            weights,
            [Request(targets.find(each.target), each.scheme, each.scheme) for each in found.rows],
            folder,
            model,
        )
    return Written(found, element_type(config), folder)


def size(path: Path) -> int:
    return path.stat().st_size


def gguf_data(path: Path) -> int:
    """The bytes from the first tensor on."""
    data = path.read_bytes()
    return len(data) - min(tensor.start for tensor in parse(memoryview(data), BuildError).tensors.values())


def test_every_variant_has_the_bytes_that_were_computed(written: Written) -> None:
    real = {
        "gguf": lambda folder: gguf_data(folder / "model.gguf"),
        "onnx": lambda folder: size(folder / "model.onnx.data"),
        "mlx": lambda folder: size(folder / "model.safetensors"),
    }
    assert {each.id: each.file_bytes for each in written.found.rows} == {
        each.id: real[each.target](written.folder / each.id) for each in written.found.rows
    }


@pytest.mark.parametrize(
    ("config", "dtype"),
    [
        ({"torch_dtype": "float16"}, "f16"),
        ({"dtype": "float32", "torch_dtype": None}, "f32"),
        ({"text_config": {"torch_dtype": "float16"}}, "f16"),
        ({"torch_dtype": "bfloat16", "text_config": {"dtype": "float32"}}, "bf16"),
        ({}, "bf16"),
        ({"torch_dtype": "auto", "text_config": []}, "bf16"),
    ],
)
def test_the_element_type(config: dict[str, Any], dtype: str) -> None:
    assert element_type(config) == dtype


# The published models: sizes in MB (10^6), the KV cache in f16 in KiB a token


def shape(
    hidden: int, layers: int, heads: int, kv_heads: int, head_dim: int, inter: int, vocab: int, **more: Any
) -> Decoder:
    # One position: the rope tables of ONNX grow with the context, and are no part of these figures.
    return decoders.describe(
        hidden_size=hidden,
        n_layers=layers,
        n_heads=heads,
        n_kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate_size=inter,
        n_vocab=vocab,
        context=1,
        **more,
    )


def figures(decoder: Decoder) -> tuple[float, float, float, float]:
    """Parameters in millions, MLX in 4 bits and ONNX in int4 in MB, the KV cache of a token in KiB."""
    mlx = targets.find("mlx").measure(decoder, "bf16", "4bit").data_bytes
    onnx = targets.find("onnx").measure(decoder, "bf16", "int4").data_bytes
    return (
        round(decoder.n_parameters / 1e6, 1),
        round(mlx / 1e6),
        round(onnx / 1e6),
        kv_bytes(decoder, "gguf", "f16", 1) / 1024,
    )


GEMMA_2 = {"norms": "both"}
GEMMA_3 = {"norms": "both", "qk_norm": "head"}
MODELS: list[tuple[str, Decoder, float, float, float, float]] = [
    ("Llama-3.2-1B-Instruct", shape(2048, 16, 32, 8, 64, 8192, 128256), 1235.8, 695, 773, 32),
    ("Llama-3.2-3B-Instruct", shape(3072, 28, 24, 8, 128, 8192, 128256), 3212.7, 1807, 2009, 112),
    ("Phi-3.5-mini-instruct", shape(3072, 32, 32, 32, 96, 8192, 32064, tied=False), 3821.1, 2150, 2389, 384),
    (
        "Phi-4-mini-reasoning",
        shape(3072, 32, 24, 8, 128, 8192, 200064, pattern=(Positions(Rope(1e4, 96)),)),
        3836.0, 2158, 2398, 128,
    ),
    ("gemma-2-2b-it", shape(2304, 26, 8, 4, 256, 9216, 256000, **GEMMA_2), 2614.3, 1471, 1635, 104),
    ("gemma-3-270m-it", shape(640, 18, 4, 1, 256, 2048, 262144, **GEMMA_3), 268.1, 151, 168, 18),
    ("gemma-3-1b-it", shape(1152, 26, 4, 1, 256, 6912, 262144, **GEMMA_3), 999.9, 563, 625, 26),
    ("gemma-3-4b-it", shape(2560, 34, 8, 4, 256, 10240, 262208, **GEMMA_3), 3880.3, 2183, 2426, 136),
    ("Qwen2.5-0.5B-Instruct", shape(896, 24, 14, 2, 64, 4864, 151936, qkv_bias=True), 494.0, 278, 309, 12),
    ("Qwen3-0.6B", shape(1024, 28, 16, 8, 128, 3072, 151936, qk_norm="head"), 596.0, 335, 373, 112),
    ("SmolLM2-135M", shape(576, 30, 9, 3, 64, 1536, 49152), 134.5, 76, 84, 22.5),
    (
        "SmolLM3-3B",
        shape(2048, 36, 16, 4, 128, 11008, 128256, pattern=(Positions(Rope(5e6, 128)),) * 3 + (Positions(None),)),
        3075.1, 1730, 1922, 72,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "decoder", "millions", "mlx", "onnx", "kv"), MODELS, ids=[each[0] for each in MODELS])
def test_published_models(name: str, decoder: Decoder, millions: float, mlx: float, onnx: float, kv: float) -> None:
    assert figures(decoder) == (millions, mlx, onnx, kv)


@pytest.mark.shared
@pytest.mark.parametrize("name", [each[0] for each in MODELS])
def test_published_configs(name: str, shared: Path) -> None:
    path = shared / "configs" / f"{name}.json"
    if not path.exists():
        pytest.skip(f"no config of {name} is here")
    described = families.describe(json.loads(path.read_text()), 1)
    (by_hand, *expected) = next(each[1:] for each in MODELS if each[0] == name)
    assert list(described.tensors()) == list(by_hand.tensors())
    assert figures(described) == tuple(expected)


# What follows from the sizes


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return read_config(str(make_llama(tmp_path_factory.mktemp("fit") / "model", hidden=256, intermediate=512)))


def test_the_memory_is_what_the_plan_computes(config: dict[str, Any]) -> None:
    decoder = families.describe(config, 100)
    for each in fit(config, ANY, 100).rows:
        kv_cache = "f16" if each.target == "gguf" and each.scheme != "f32" else "f32" if each.served else each.kv_cache
        assert each.kv_cache == kv_cache
        written = targets.find(each.target).measure(decoder, "bf16", each.scheme)
        payload = Payload(
            decoder, each.runtime, each.scheme, written.weights_bytes, decoder.n_vocab, loading=written.loading_bytes
        )
        assert each.memory == needed(payload, Options(100, 1, each.kv_cache), ANY.memory)
        assert each.bits == written.bits(decoder)


@pytest.mark.parametrize(
    ("variant", "exact"), [("gguf-q4_k_m", 256), ("onnx-int4_mixed", 300), ("mlx-4bit_mixed", 300)]
)
def test_the_largest_context_fits_and_one_more_does_not(variant: str, exact: int, config: dict[str, Any]) -> None:
    mac = devices.find("mac-8gb")
    memory = row(fit(config, mac, exact), variant).memory.total
    found = row(fit(config, devices.with_memory(memory, mac), 10), variant)
    assert found.fits_context == exact
    assert found.kv_cache == ("f32" if variant == "onnx-int4_mixed" else "f16")
    assert row(fit(config, devices.with_memory(memory - 1, mac), 10), variant).fits_context < exact


def test_the_largest_context_ends_with_the_models_own(config: dict[str, Any]) -> None:
    assert {each.fits_context for each in fit(config, ANY, 10).rows} == {512}


def test_the_default_context_is_what_the_sdk_loads(config: dict[str, Any]) -> None:
    assert fit(config, ANY).decoder.context == 512
    assert fit(config | {"max_position_embeddings": 8192}, ANY).decoder.context == 4096


def test_q4_is_the_choice_where_it_fits(config: dict[str, Any]) -> None:
    roomy = fit(config, devices.find("pi5-8gb"), 512)
    assert roomy.fits
    assert roomy.choice is row(roomy, "gguf-q4_k_m")
    assert fit(config, devices.find("mac-8gb"), 512).choice.id == "mlx-4bit_mixed"  # type: ignore[union-attr]


def test_a_smaller_quantisation_is_the_choice_where_q4_does_not_fit(config: dict[str, Any]) -> None:
    # Where the embedding is most of the model, llama.cpp keeps no second copy of the layers' q4_0.
    config = config | {"vocab_size": 8192}
    least = row(fit(config, ANY, 512), "gguf-q4_0").memory.total
    tight = fit(config, devices.with_memory(least), 512)
    assert tight.choice is row(tight, "gguf-q4_0")
    assert tight.fits
    assert not row(tight, "gguf-q4_k_m").fits


def test_q4_0_fits_without_the_copy_that_is_rearranged(config: dict[str, Any]) -> None:
    whole = row(fit(config, ANY, 512), "gguf-q4_0").memory
    stored = row(fit(config, devices.with_memory(whole.total - 1), 512), "gguf-q4_0")
    assert stored.fits
    assert stored.fits_context == 512
    assert stored.memory.weights < whole.weights


def test_a_shorter_context_is_the_choice_where_nothing_fits(config: dict[str, Any]) -> None:
    least = row(fit(config, ANY, 200), "gguf-q4_k_m").memory.total
    short = fit(config, devices.with_memory(least), 512)
    assert not short.fits
    assert short.choice is row(short, "gguf-q4_k_m")
    assert 200 <= short.choice.fits_context <= 256


def test_there_is_no_choice_where_not_one_token_fits(config: dict[str, Any]) -> None:
    small = fit(config, devices.with_memory(1000), 512)
    assert (small.fits, small.choice) == (False, None)


def test_a_variant_without_an_engine_is_measured_and_not_chosen(config: dict[str, Any]) -> None:
    found = fit(config, devices.find("pi5-8gb"))
    assert not row(found, "mlx-4bit_mixed").served
    assert not row(found, "mlx-4bit_mixed").fits
    assert row(found, "mlx-4bit_mixed").file_bytes > 0


def test_what_a_target_cannot_express_is_named(tmp_path: Path) -> None:
    odd = read_config(str(make_llama(tmp_path / "odd", hidden=60, heads=6, head_dim=12)))
    found = fit(odd, ANY)
    reasons = {refusal.target: refusal.reason for refusal in found.refusals}
    assert "head dimension of 12" in reasons["onnx"]
    assert "onnx" not in {each.target for each in found.rows}


def test_the_largest_context_is_one_that_can_be_built(config: dict[str, Any]) -> None:
    # llama.cpp's qwen2 has no windows, which hide nothing in a context that is no longer than they are.
    windows = {"use_sliding_window": True, "sliding_window": 200, "max_window_layers": 1}
    windowed = config | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"} | windows
    assert row(fit(windowed, ANY, 100), "gguf-q8_0").fits_context == 200
    assert row(fit(windowed, ANY, 100), "onnx-int8").fits_context == 512
    assert "--context 200" in {each.target: each.reason for each in fit(windowed, ANY, 300).refusals}["gguf"]


# Devices


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GB", 4 * 10**9),
        ("4GiB", 4 * 2**30),
        ("512 MiB", 512 * 2**20),
        ("1.5GB", 1_500_000_000),
        (" 2TB ", 2 * 10**12),
    ],
)
def test_a_size_of_a_memory(text: str, size: int) -> None:
    assert devices.read_memory(text) == size


@pytest.mark.parametrize("text", ["", "4", "GB", "-4GB", "0GB", "4gb", "4 G", "4GBs", "1e3MB", "٤GB", "4\nGB"])
def test_what_is_no_size_of_a_memory(text: str) -> None:
    with pytest.raises(UsageError, match="4GiB"):
        devices.read_memory(text)


def test_a_device_leaves_less_than_it_has() -> None:
    for name, device in devices.DEVICES.items():
        total = int(name.removesuffix("gb").rpartition("-")[2]) * devices.GIB
        assert name == device.name
        assert total / 3 < device.memory < total
        assert device.basis
        assert ("mlx" in device.engines) == name.startswith("mac")


def test_an_unknown_device_names_the_closest() -> None:
    with pytest.raises(UsageError, match="Did you mean pi5-8gb"):
        devices.find("pi5-8")


def test_this_machine_has_what_is_free() -> None:
    mac = Hardware("darwin", "arm64", 4, 4, None, 16 << 30, 9 << 30, ("metal",))
    assert devices.this_machine(mac).memory == 9 << 30
    assert next(iter(devices.this_machine(mac).engines)) == "mlx"


def test_an_answer_takes_at_least_what_reading_the_weights_does() -> None:
    config = {
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "intermediate_size": 8192,
        "vocab_size": 128256,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": True,
    }
    pi, jetson, mac = (fit(config, devices.find(name)) for name in ("pi4-8gb", "jetson-orin-nano-8gb", "mac-8gb"))
    slow, fast = (row(each, "gguf-q4_k_m").decode_at_best_s for each in (pi, jetson))
    assert slow is not None
    assert fast is not None
    assert slow / fast == pytest.approx(102.4 / 12.8)
    weights = row(pi, "gguf-q4_k_m").file_bytes  # tied: all of it is read
    cache = kv_bytes(pi.decoder, "gguf", "f16", 576)
    assert slow == pytest.approx(127 * (weights + cache) / 12.8e9, rel=0.02)
    assert row(mac, "gguf-q4_k_m").decode_at_best_s is None


def test_an_embedding_that_is_no_head_is_not_read() -> None:
    tied = shape(2048, 16, 32, 8, 64, 8192, 128256, tied=True)
    untied = msgspec.structs.replace(tied, tied=False)
    assert untied.n_parameters - tied.n_parameters == 128256 * 2048
    assert at_best(untied, 4.5, 0, 1e10, Turn()) == pytest.approx(at_best(tied, 4.5, 0, 1e10, Turn()))
    assert at_best(tied, 8, 10**9, 1e9, Turn(answer=2)) == pytest.approx(tied.n_parameters / 1e9 + 1)


# The command


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A model of which nothing but the config is there."""
    source = make_llama(tmp_path / "my model", hidden=256, intermediate=512)
    for path in source.iterdir():
        if path.name != "config.json":
            path.unlink()
    return str(source)


def test_the_command_reads_the_config_alone(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", folder, "--device", "pi5-8gb", "--context", "256"]) == 0
    told = capsys.readouterr().out
    assert "256 of 512" in told
    assert "7.0 GiB for a model (8 GiB, less 1 GiB" in told
    assert "mlx: no engine serves it on pi5-8gb." in told
    assert "Yes: gguf-q4_k_m needs" in told
    assert "17.1 GB/s or less (LPDDR4X-4267, 32 bits)" in " ".join(told.split())
    assert f"edgepack build '{folder}' -t gguf -q q4_k_m -c 256" in told
    assert all(len(line) <= 80 for line in told.split("\n\n")[1].splitlines())


def test_the_command_says_no_with_1(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", folder, "--memory", "31.8MiB"]) == 1
    told = capsys.readouterr().out
    assert "No: at 512 tokens gguf-q4_k_m needs" in told
    assert main(["fit", folder, "--memory", "0.1MB"]) == 1
    assert "No: not one token fits." in capsys.readouterr().out


def test_the_command_as_json(folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", folder, "--device", "mac-8gb", "--memory", "1GB", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["device"] == {"name": "mac-8gb", "memory": 10**9, "basis": "as given"}
    assert (report["fits"], report["choice"], report["context"]) == (True, "mlx-4bit_mixed", 512)
    (chosen,) = (each for each in report["variants"] if each["variant"] == report["choice"])
    memory = chosen["memory"]
    assert memory["total"] == sum(memory[part] for part in ("weights", "kv_cache", "overhead", "engine", "loading"))
    assert report["command"].endswith("-t mlx -q 4bit_mixed -c 512")


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (("--device", "toaster"), "toaster"),
        (("--memory", "lots"), "lots"),
        (("--context", "1k"), "1024"),
        (("--context", "x"), "--context"),
    ],
)
def test_what_cannot_be_asked_ends_with_2(
    options: tuple[str, ...], named: str, folder: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", folder, *options]) == 2
    assert named in capsys.readouterr().err


def test_the_command_needs_no_engine_and_no_weights_library(folder: str) -> None:
    code = (
        "import sys; from edgepack.cli import main; "
        f"assert main(['fit', {folder!r}, '--device', 'pi5-8gb']) == 0; "
        "assert not {'mlx', 'onnxruntime', 'torch', 'huggingface_hub'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_text_at_once_is_no_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embedding_models.MODELS["gemma"](tmp_path / "source")
    assert main(["fit", str(tmp_path / "source"), "--device", "pi5-8gb"]) == 0
    said = capsys.readouterr().out
    assert "KV cache none, since a text is evaluated at once" in said
    assert "of an answer" not in said
    assert "Yes: " in said
