"""What a build says before it begins: whether what it will make can run here, and recipes that make no sense."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from models import make_llama

from edgepack.device.hardware import Hardware
from edgepack.errors import UsageError
from edgepack.runtime import Support
from edgepack_packager import families, foresight
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model

GIB = 1 << 30
LINUX = Hardware("linux", "x86_64", 4, 4, None, 8 * GIB, 6 * GIB)
CPU = dict.fromkeys(("gguf", "mlx", "onnx"), Support(("cpu",), version="99.0"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    config = read_object(make_llama(tmp_path_factory.mktemp("model")) / "config.json")
    return Model("model", families.describe(config), "bf16", config)


def obstacle(model: Model, *targets: str, hardware: Hardware = LINUX, **supports: Support) -> str | None:
    requests = Recipe(targets, ("f32",)).requests(model)
    return foresight.obstacle(model, requests, hardware, CPU | supports)


def test_what_can_run_here_needs_no_word(model: Model) -> None:
    assert obstacle(model, "gguf") is None
    assert obstacle(model, "mlx", "onnx") is None
    assert obstacle(model, "mlx", mlx=Support(("metal",), version="99.0")) is None


def test_an_oracle_is_no_engine_to_serve_with(model: Model) -> None:
    found = obstacle(model, "mlx")
    assert found is not None
    assert "mlx: on a CPU it is an oracle" in found
    assert "backend=mlx" in found


def test_memory_that_is_lacking_is_said_with_what_would_fit(model: Model) -> None:
    found = obstacle(model, "gguf", "onnx", hardware=replace(LINUX, memory_available=1 << 20))
    assert found is not None
    assert "does not fit the memory: " in found
    assert "1.0 MiB are available" in found


def test_an_engine_that_is_not_here_is_named(model: Model) -> None:
    found = obstacle(model, "onnx", onnx=Support((), "it is not installed", "pip install x"))
    assert found is not None
    assert "onnx: it is not installed" in found
    assert "pip install x" in found


def test_capitals_in_a_name_do_not_matter(model: Model) -> None:
    requests = Recipe(("GGUF", "Onnx", "mlx"), ("Q8",)).requests(model)
    assert [request.id for request in requests] == ["gguf-q8_0", "onnx-int8", "mlx-8bit"]
    for target, quant, asked in (("Gguf", "Q4_K_M", "q4_k_m"), ("onnx", "INT4", "int4"), ("MLX", "4Bit", "4bit")):
        (request,) = Recipe((target,), (quant, quant.lower())).requests(model)
        assert (request.scheme, request.asked) == (asked, asked)


def test_a_context_holds_a_prompt_and_an_answer() -> None:
    with pytest.raises(UsageError, match="A context of 1 token"):
        Recipe(("gguf",), ("q4",), context=1)
    assert Recipe(("gguf",), ("q4",), context=2).context == 2


@pytest.mark.parametrize("package", ["gguf", "numba", "onnx", "threadpoolctl"])
def test_a_package_that_only_a_build_needs_is_named(package: str, tmp_path: Path) -> None:
    """Whoever has an engine and no more: the package is hidden from a new process."""
    target = "onnx" if package == "onnx" else "gguf"
    words = ["build", str(make_llama(tmp_path / "model")), "-t", target, "-q", "f32", "-o", str(tmp_path / "out")]
    code = f"import sys; sys.modules[{package!r}] = None; from edgepack.cli import main; sys.exit(main({words!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert package in done.stderr
    assert "'edgepack[build]'" in done.stderr
    assert not (tmp_path / "out").exists()
