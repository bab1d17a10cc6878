"""The public face: few names, all listed, and an import that costs next to nothing."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import edgepack
from edgepack import errors
from edgepack.cli.app import app_for

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


def test_a_command_imports_itself_and_no_other() -> None:
    statement = "import io, sys; sys.stdout = io.StringIO()\nfrom edgepack.cli import main; main(['run', '--help'])\n"
    loaded = loaded_after(statement + "sys.stdout = sys.__stdout__")
    assert "edgepack.cli.run" in loaded
    assert not {each for each in loaded if each.startswith("edgepack_packager")}
    assert not loaded & {"edgepack.cli.verify", "edgepack.cli.bench", "edgepack.cli.doctor"}


def test_each_command_alone_is_the_one_that_all_have() -> None:
    def names(*argv: str) -> list[str | None]:
        app = app_for(argv)
        commands = [each.name or (each.callback and each.callback.__name__) for each in app.registered_commands]
        return [*commands, *(group.name for group in app.registered_groups)]

    everything = names("--help")
    assert {"build", "run", "verify", "doctor", "engine"} <= set(everything)
    assert len(set(everything)) == len(everything)
    assert all(names(str(name), "--help") == [name] for name in everything)
    assert names("rum") == names() == everything
