"""What the packager's commands say: of models that are not packed yet, and of engines that are left out."""

from __future__ import annotations

import json

import pytest

from edgepack.cli import main
from edgepack.runtime import Support
from edgepack_packager.cli.build import _runnable
from edgepack_packager.source import catalog


def test_the_catalogue_is_told_with_what_each_template_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "takes no system prompt: gemma-2-2b, gemma-1-2b" in lines
    assert any(line.startswith("calls tools: ") and "qwen3-0.6b" in line for line in lines)
    assert any(line.startswith("thinks, or not, as it is told (--think, --no-think): ") for line in lines)


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[str]:
    """Return the names that `edgepack models` lists."""
    assert main(["models", "--json", *arguments]) == 0
    return [entry["alias"] for entry in json.loads(capsys.readouterr().out)["models"]]


def test_the_newest_model_stands_first(capsys: pytest.CaptureFixture[str]) -> None:
    months = [entry.released for entry in catalog.entries()]
    assert months == sorted(months, reverse=True)
    assert listed(capsys) == [entry.alias for entry in catalog.entries()]


def test_models_are_chosen_by_licence_and_by_what_their_templates_take(capsys: pytest.CaptureFixture[str]) -> None:
    permissive = listed(capsys, "--licence", "permissive")
    assert {"phi-4-mini", "qwen3-0.6b"} <= {*permissive}
    assert not {"llama-3.2-1b", "gemma-3-1b", "lfm2-350m", "hunyuan-0.5b"} & {*permissive}
    assert not {"exaone-4-1.2b", "qwen2.5-coder-3b"} & {*permissive}, "not for commerce"
    assert {*listed(capsys, "--licence", "mit")} < {*permissive}
    assert "llama-3.2-1b" in listed(capsys, "--licence", "llama3.2")
    assert listed(capsys, "--licence", "LicenseRef-gemma") == listed(capsys, "--licence", "gemma")
    both = listed(capsys, "--tools", "--thinking")
    assert "qwen3-0.6b" in both
    assert "qwen2.5-0.5b" not in both
    assert main(["models", "--licence", "bsd"]) == 2
    assert "Choose permissive" in capsys.readouterr().err


def test_models_are_chosen_by_the_device_that_runs_them(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    some = tuple(entry for entry in catalog.entries() if entry.alias in ("smollm2-135m", "qwen3-4b"))
    monkeypatch.setattr(catalog, "entries", lambda: some)
    assert listed(capsys, "--fits", "pi5-2gb") == ["smollm2-135m"]
    assert listed(capsys, "--fits", "pi5-8gb") == ["qwen3-4b", "smollm2-135m"]
    assert listed(capsys, "--fits", "pi5-2gb", "--thinking") == []
    assert main(["models", "--fits", "pi5-2gb", "--thinking"]) == 0
    assert "No model of the catalogue is so." in capsys.readouterr().out


def test_an_engine_that_the_demo_leaves_out_is_told_with_what_installs_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lacking = Support((), reason="It needs the system's libgomp.so.1.", install="apt-get install libgomp1")
    found = {"gguf": lacking, "mlx": Support((), reason="No wheel is for it."), "onnx": Support(("cpu",))}
    monkeypatch.setattr("edgepack.engines.probe_all", lambda hardware: found)
    assert _runnable() == ("onnx",)
    assert capsys.readouterr().err.splitlines() == [
        "gguf is left out: It needs the system's libgomp.so.1. It comes with: apt-get install libgomp1",
        "mlx is left out: No wheel is for it.",
    ]
