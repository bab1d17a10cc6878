"""An exporter, one that needs no torch, from its environment to a sealed bundle; and what it may write otherwise."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import exported_models
import fake_exporter
import pytest
from text_side import write_text_side

from edgepack import load
from edgepack.bundle.files import open_bundle
from edgepack.cli import main
from edgepack.errors import BuildError, EngineMissingError, SourceError, UnsupportedModelError, UsageError
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager import exporting
from edgepack_packager.build import Built, VariantsFailedError, build
from edgepack_packager.exporting import sandbox
from edgepack_packager.recipe import Recipe

RECIPE = Recipe((), (), exporter="optimum")

Building = Callable[..., Built]


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let the exporter optimum be the fake, and its environment this one."""
    exporter = replace(exporting.find("optimum"), script=Path(fake_exporter.__file__))
    monkeypatch.setattr(exporting, "EXPORTERS", (exporter,))
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    python = exporter.lock.python
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)


def checkpoint(folder: Path, **changes: object) -> Path:
    exported_models.write_checkpoint(folder, **changes)
    write_text_side(folder, exported_models.VOCABULARY, add_bos=False)
    return folder


@pytest.fixture
def building(fake: None, tmp_path: Path) -> Building:
    def run(fault: str = "", **changes: object) -> Built:
        source = checkpoint(tmp_path / "source", **{"model_type": f"gpt2+{fault}"} | changes)
        # Fewer positions than the model has, so that one ahead of the last is there.
        return build(str(source), replace(RECIPE, context=90 if fault else None), tmp_path / "out.edgepack")

    return run


def test_a_bundle_says_by_whom_and_against_what(building: Building, capsys: pytest.CaptureFixture[str]) -> None:
    built = building()
    manifest = built.manifest
    assert "exported" in manifest.schema.features
    assert manifest.decoder.exported
    assert manifest.decoder.exported.exporter == "fake-exporter 1.0"
    assert manifest.decoder.n_parameters == sum(tensor.size for tensor in exported_models.weights().values())
    assert manifest.context.verified == exported_models.CONTEXT
    assert manifest.producer.recipe["exporter"] == "optimum"
    assert manifest.producer.packages["fake-exporter"] == "1.0"
    (variant,) = manifest.variants
    assert (variant.id, variant.target, variant.runtime) == ("optimum-f32", "onnx", "onnx")
    assert variant.proof
    assert variant.proof.against == "transformers 4.0"
    assert variant.proof.tokens == exported_models.CONTEXT
    assert {gate.name: gate.passes for gate in variant.proof.gates} == {
        "transformers.nmse": True,
        "transformers.steps": True,
        "tensors.missing": True,
    }
    assert open_bundle(built.path).manifest == manifest
    assert main(["inspect", str(built.path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "exported by fake-exporter 1.0" in said
    assert "proven against transformers 4.0, not the reference, on 96 tokens" in said
    assert "KV cache 512 B a token in f32" in said
    assert main(["quality", str(built.path)]) == 1
    assert "edgepack inspect shows it" in capsys.readouterr().err
    assert main(["verify", str(built.path), "--replay"]) == 0
    assert main(["plan", str(built.path)]) == 0


@pytest.mark.parametrize("isolate", [False, True])
def test_a_bundle_answers(isolate: bool, building: Building) -> None:
    with load(building().path, isolate=isolate) as model:
        result = model.generate("Once upon a time", max_tokens=8, temperature=0)
        ids = model.tokenize("Once upon a time")
        for token in result.token_ids:
            ids.append(token)
        expected = exported_models.logits(exported_models.weights(), ids[:-1])
    assert [int(row.argmax()) for row in expected[-len(result.token_ids) :]] == list(result.token_ids)


def test_the_same_bytes_each_time(building: Building, tmp_path: Path) -> None:
    first = building()
    again = build(str(tmp_path / "source"), RECIPE, tmp_path / "again.edgepack")
    assert again.id == first.id


@pytest.mark.parametrize(
    ("fault", "gates"),
    [
        ("weight", {"transformers.nmse", "transformers.steps", "tensors.missing"}),
        ("row", {"tensors.missing"}),
        ("position", {"transformers.nmse", "transformers.steps"}),
    ],
)
def test_a_fault_that_an_exporter_makes_is_heard(fault: str, gates: set[str], building: Building) -> None:
    with pytest.raises(VariantsFailedError) as raised:
        building(fault)
    error = raised.value
    assert error.built is None
    assert gates <= {missed.split()[0] for missed in error.missed["optimum-f32"]}
    kept = json.loads((error.evidence / "optimum-f32.json").read_text())
    assert kept["against"] == "transformers 4.0"
    assert kept["missed"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("more", "wrote 'setup.py', which is no part of a variant"),
        ("link", "facts.json, which is not a plain file"),
        ("large", "as facts.json, more than such a model can have"),
        ("facts", "facts.json is not what it should be"),
        ("short", "wrote no logits of 90 tokens"),
        ("less", r"wrote no model\.onnx\.data"),
        ("noise", "is not a model"),
        ("exit", "exit code 1: it cannot export that"),
    ],
)
def test_what_an_exporter_may_not_write(fault: str, why: str, building: Building, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=why):
        building(fault)
    assert {path.name for path in tmp_path.iterdir()} == {"source", "state"}


def test_an_exporter_that_hangs_is_ended(building: Building, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "TIMEOUT_S", 5.0)
    with pytest.raises(BuildError, match="did not end within 5 s"):
        building("hang")


def test_an_exporter_sees_the_config_and_the_weights_alone(building: Building, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    note = str(building("environment").manifest.producer.recipe["notes"])
    assert "HF_TOKEN" not in note
    assert "'HF_HUB_OFFLINE'" in note
    assert "['config.json', 'model.safetensors']" in note


@pytest.mark.skipif(not sandbox.without_network(), reason="needs a namespace of its own without root")
def test_an_exporter_has_no_network(building: Building) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert socket.socket().connect_ex(("127.0.0.1", port)) == 0
        note = str(building("network", host="127.0.0.1", port=port).manifest.producer.recipe["notes"])
    assert "as 0." not in note
    assert "1 tensors of the checkpoint have no place" in note


@pytest.mark.parametrize(
    ("changes", "error", "why"),
    [
        ({"architectures": ["T5ForConditionalGeneration"]}, UnsupportedModelError, "no decoder of text alone"),
        ({"is_encoder_decoder": True}, UnsupportedModelError, "no decoder of text alone"),
        ({"auto_map": {"AutoModel": "code.Model"}}, UnsupportedModelError, "never run"),
        ({"quantization_config": {"quant_method": "gptq"}}, UnsupportedModelError, "quantised by"),
        ({"num_experts": 8}, UnsupportedModelError, "mixture"),
        ({"transformers_version": "5.7.0"}, UnsupportedModelError, "newer transformers than 4.x"),
        ({"rope_parameters": {}}, UnsupportedModelError, "newer transformers than 4.x"),
        ({"architectures": ["A", "B"]}, SourceError, "must name one class"),
        ({"n_layer": 1}, UnsupportedModelError, r"past_key_values\.1\.key is not among"),
        ({"n_layer": None, "num_hidden_layers": "2"}, SourceError, "n_layer"),
        ({"vocab_size": 10**10}, SourceError, "vocab_size"),
        ({"n_layer": 10**6}, SourceError, "more than 512"),
        ({"vocab_size": 1 << 30}, UnsupportedModelError, "no bundle can hold"),
    ],
)
def test_models_that_no_exporter_takes(
    changes: dict[str, object], error: type[Exception], why: str, building: Building
) -> None:
    with pytest.raises(error, match=why):
        building(**changes)


def test_an_engine_that_is_missing_is_the_only_way(fake: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = Support((), reason="onnxruntime is not installed.", install="pip install 'edgepack[onnx]'")
    monkeypatch.setattr(probing, "probe", lambda name, machine: absent)
    with pytest.raises(EngineMissingError, match="onnxruntime is not installed") as raised:
        build(str(checkpoint(tmp_path / "source")), RECIPE, tmp_path / "out.edgepack")
    assert raised.value.hint == "Install with: pip install 'edgepack[onnx]'."


def test_pickles_are_no_weights(fake: None, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(SourceError, match=r"pytorch_model\.bin"):
        build(str(source), RECIPE, tmp_path / "out.edgepack")


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--calibrate", "built-in"], "--calibrate was given with --exporter optimum"),
        (["--quality", "searched"], "--quality was given with --exporter optimum"),
        (["--receipt", "built-in"], "--receipt was given"),
        (["--adapter", "lora"], "--adapter was given"),
        (["--draft", "demo"], "--draft was given"),
        (["--kv-cache", "f16"], "--kv-cache was given"),
        (["--max-kl", "0.1"], "--max-kl was given"),
        (["--unproven"], "--unproven was given"),
        (["--fit", "1GB"], "--fit was given"),
        (["--bits", "4"], "--bits was given"),
        (["-q", "q4"], "cannot write q4"),
        (["-q", "f32", "-q", "q8"], "cannot write f32, q8"),
        (["-t", "gguf"], "--target gguf was given with --exporter optimum, which writes onnx alone"),
        (["-t", "all"], "--target all was given"),
        (["-c", "97"], "the model has 96 positions"),
    ],
)
def test_options_that_are_the_targets_alone(
    options: list[str], why: str, fake: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(tmp_path / "source")
    assert main(["build", str(source), "--exporter", "optimum", "-o", str(tmp_path / "out"), *options]) == 2
    assert why in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_options_that_an_exporter_honours(fake: None, tmp_path: Path) -> None:
    source = checkpoint(tmp_path / "source")
    out = tmp_path / "out.edgepack"
    asked = ["-t", "onnx", "-q", "onnx:f32", "-c", "40", "--name", "mine", "--no-chat"]
    assert main(["build", str(source), "--exporter", "optimum", "-o", str(out), *asked]) == 0
    manifest = open_bundle(out).manifest
    assert (manifest.name, manifest.chat, manifest.context.verified) == ("mine", None, 40)


def test_an_exporter_that_is_not_there() -> None:
    with pytest.raises(UsageError, match="No exporter is called 'pickle'"):
        exporting.find("pickle")


def test_an_unknown_architecture_names_the_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["build", str(checkpoint(tmp_path / "source")), "-o", str(tmp_path / "out")]) == 1
    assert "--exporter optimum" in " ".join(capsys.readouterr().err.split())


@pytest.mark.skipif(os.name != "posix", reason="limits are POSIX's")
def test_limits_follow_from_the_weights(tmp_path: Path) -> None:
    small, large = (sandbox.job(tmp_path, tmp_path, [1], 1, size) for size in (0, 1 << 30))
    assert large.memory - small.memory == 12 << 30
    assert large.largest - small.largest == 4 << 30
