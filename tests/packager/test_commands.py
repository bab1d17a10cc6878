"""What the packager's commands say: of models that are not packed yet, and of engines that are left out."""

from __future__ import annotations

import pytest

from edgepack.cli import main
from edgepack.runtime import Support
from edgepack_packager.cli.build import _runnable


def test_the_catalogue_is_told_with_what_each_template_takes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "takes no system prompt: gemma-2-2b" in lines
    assert any(line.startswith("calls tools: ") and "qwen3-0.6b" in line for line in lines)
    assert any(line.startswith("thinks unless told not to (--no-think): ") for line in lines)


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
