"""The public face: few names, all listed, and an import that costs next to nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import edgepack
from edgepack import errors

NAMES = [
    "Bundle",
    "Chunk",
    "Conversation",
    "FakeRuntime",
    "Model",
    "Plan",
    "Result",
    "__version__",
    "aload",
    "load",
    "open_bundle",
    "plan",
]
ERRORS = [
    name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
]


def test_the_names_are_these() -> None:
    assert sorted(edgepack.__all__) == sorted(NAMES + ERRORS)
    assert dir(edgepack) == sorted(edgepack.__all__)


@pytest.mark.parametrize("name", NAMES + ERRORS)
def test_each_name_is_there(name: str) -> None:
    assert getattr(edgepack, name) is not None


def test_the_errors_are_one_tree() -> None:
    assert len(ERRORS) >= 17
    for name in ERRORS:
        assert issubclass(getattr(edgepack, name), edgepack.EdgepackError)
        assert name in (errors.__doc__ or "")


def test_another_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="lod"):
        edgepack.lod  # type: ignore[attr-defined]  # noqa: B018


def loaded_after(statement: str) -> set[str]:
    code = f"{statement}\nimport sys; print(*sys.modules)"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"numpy", "tokenizers", "typer", "rich", "jinja2", "msgspec", "onnxruntime", "mlx", "mlx_lm", "onnx", "gguf"}


def test_importing_the_package_imports_nothing_heavy() -> None:
    assert not loaded_after("import edgepack") & HEAVY


def test_the_command_line_imports_only_itself() -> None:
    statement = "import io, sys; sys.stdout = io.StringIO()\nfrom edgepack.cli import main; main(['--help'])\n"
    loaded = loaded_after(statement + "sys.stdout = sys.__stdout__")
    assert "typer" in loaded
    assert not loaded & (HEAVY - {"typer", "rich"})


@pytest.mark.parametrize(
    "module", ["loading", "device.planning", "bundle.files", "measuring.bench", "measuring.doctor"]
)
def test_functions_stay_functions_whatever_is_imported_first(module: str) -> None:
    code = f"import edgepack.{module}, edgepack; assert callable(edgepack.load) and callable(edgepack.plan)"
    subprocess.run([sys.executable, "-c", code], check=True)
