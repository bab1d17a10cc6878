"""An engine is called by what people install: the distribution that it comes in, with that one's version."""

from __future__ import annotations

from importlib.metadata import version

import pytest

from edgepack.bundle.files import open_bundle
from edgepack.device.hardware import detect
from edgepack.loading import plan
from edgepack.runtime import Engines, find
from edgepack_packager.build import Built
from edgepack_runtimes.onnx import engine


@pytest.mark.parametrize("name", ["gguf", "onnx", "mlx"])
def test_a_runtime_says_what_its_engine_came_in(name: str) -> None:
    runtime = find(name)
    known = {"gguf": [], "onnx": ["onnxruntime"], "mlx": ["mlx"]}[name]
    if isinstance(runtime, Engines):
        known = [each.name for each in runtime.engines() if each.used]
    assert [runtime.probe(detect()).package] == [f"{each} {version(each)}" for each in known]


@pytest.mark.parametrize(
    ("installed", "name"),
    [
        ({"onnxruntime"}, "onnxruntime"),
        ({"onnxruntime-gpu"}, "onnxruntime-gpu"),
        ({"onnxruntime", "onnxruntime-gpu"}, "onnxruntime"),
        (set(), "onnxruntime"),
    ],
)
def test_onnxruntime_comes_in_two(installed: set[str], name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_is_installed", installed.__contains__)
    assert engine.package() == name


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_a_proof_and_a_plan_name_it(demo_bundle: Built, name: str) -> None:
    package = find(name).probe(detect()).package
    bundle = open_bundle(demo_bundle.path)
    proofs = [each.proof.engine for each in bundle.manifest.variants if each.runtime == name and each.proof]
    assert set(proofs) == {package}
    choice = plan(bundle, backend=name).choice
    assert choice.package == package
    assert f"{package} on cpu, " in choice.reason
