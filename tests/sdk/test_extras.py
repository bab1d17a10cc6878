"""What an install lacks is named where it is needed: all of it, with one command."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgepack import extras, fake
from edgepack.errors import ExtraMissingError
from edgepack.text.compiling import compile_tokenizer
from edgepack.text.tokenizer import Tokenizer

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
GIVEN = [
    "numpy>=2",
    "typer>=0.15; extra == 'cli'",
    'rich[more]>=13; extra == "cli"',
    "edgepack[cli]; extra == 'build'",
    "onnx>=1.18 ; extra == 'build'",
    "winonly; sys_platform == 'nowhere' and extra == 'build'",
]


def test_the_packages_of_an_extra() -> None:
    assert extras.packages("cli", GIVEN) == {"typer", "rich"}
    assert extras.packages("build", GIVEN) == {"typer", "rich", "onnx"}
    assert extras.packages("nothing", GIVEN) == set()


def test_the_metadata_has_every_extra() -> None:
    """What is installed is this checkout, so that sentences name what pip will install."""
    for extra in PROJECT["optional-dependencies"]:
        assert extras.packages(extra), extra
    # A build of the metadata may spell a name with either line: they are one name (PEP 503).
    found = {name.replace("_", "-") for name in extras.packages("build")}
    assert {"huggingface-hub", "tokenizers", "llguidance", "rich"} <= found


def absent(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    monkeypatch.setattr(extras, "_installed", lambda name: name not in names)


def test_all_that_is_missing_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "numba", "onnx", "xllamacpp")
    with pytest.raises(ExtraMissingError) as caught:
        extras.require("A build", "build", "gguf", "onnx")
    assert caught.value.message == "A build needs numba, onnx and xllamacpp, which are not installed."
    assert caught.value.hint == "pip install 'edgepack[build,gguf]'"
    assert isinstance(caught.value, ImportError)


def test_one_that_is_missing_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    absent(monkeypatch, "rich")
    with pytest.raises(ExtraMissingError, match="needs rich, which is not installed"):
        extras.require("The edgepack command", "cli")
    absent(monkeypatch)
    extras.require("The edgepack command", "cli")


def test_a_package_that_is_there_and_broken_is_told_as_such() -> None:
    with (
        pytest.raises(ExtraMissingError, match=r"needs nowhere\.at_all, which cannot be imported"),
        extras.needed("This", "cli"),
    ):
        raise ImportError("it lacks a symbol", name="nowhere.at_all")


def test_a_fault_of_our_own_is_no_missing_package() -> None:
    with pytest.raises(ImportError) as caught, extras.needed("This", "cli"):
        raise ImportError("no such name", name="edgepack.text")
    assert not isinstance(caught.value, ExtraMissingError)


@pytest.mark.parametrize(
    ("commands", "one"),
    [
        ([], ""),
        (["pip install 'edgepack[gguf]'"], "pip install 'edgepack[gguf]'"),
        (["pip install 'edgepack[onnx]'", "pip install 'edgepack[mlx]'"], "pip install 'edgepack[mlx,onnx]'"),
        (["pip install 'edgepack[mlx]'", "apt install x"], "pip install 'edgepack[mlx]' && apt install x"),
    ],
)
def test_commands_become_one(commands: list[str], one: str) -> None:
    assert extras.together(commands) == one


HIDE = """
import sys
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {names!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hidden())
from edgepack import extras
installed = extras._installed
extras._installed = lambda name: name not in {names!r} and installed(name)
"""


def without(names: set[str], code: str) -> subprocess.CompletedProcess[str]:
    code = HIDE.format(names=names) + code
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


DEVICE = {"llguidance", "jsonschema", "typer", "rich", "tokenizers", "huggingface_hub", "onnx", "numba", "gguf"}


def test_a_device_answers_with_an_engine_and_no_more() -> None:
    done = without(DEVICE, "from edgepack import fake\nprint(fake.model(says='Hi').generate('a').text)")
    assert done.stdout.strip() == "Hi", done.stderr


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("model.generate('a', regex='a')", "An answer bound by regex needs jsonschema and llguidance, which are not"),
        ("model.chat([{'role': 'user', 'content': 'a'}], tools=[{'name': 'f'}])", "edgepack[structured]"),
        (
            "from edgepack.text.compiling import compile_tokenizer; compile_tokenizer(b'')",
            "needs tokenizers, which is not installed. pip install 'edgepack[tokenizers]'",
        ),
    ],
)
def test_what_needs_more_says_so(code: str, said: str) -> None:
    body = f"from edgepack import fake, errors\nmodel = fake.model()\ntry:\n    {code}\n"
    done = without(DEVICE, body + "except errors.ExtraMissingError as error:\n    print(error)")
    assert said in done.stdout, done.stderr


def test_the_command_says_what_it_needs() -> None:
    done = without(DEVICE, "from edgepack.cli import main\nsys.exit(main(['doctor']))")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: The edgepack command needs rich and typer, which are not installed.",
        "hint: pip install 'edgepack[cli]'",
    ]


def test_a_command_of_another_package_says_at_once_what_both_need() -> None:
    hidden = {*DEVICE, *extras.packages("build")}
    done = without(hidden, "from edgepack.cli import main\nsys.exit(main(['build', 'demo']))")
    said, hint = done.stderr.splitlines()
    assert {*extras.packages("build"), "rich", "typer"} <= set(re.findall(r"[\w-]+", said))
    assert hint == "hint: pip install 'edgepack[build]'"


def test_a_build_names_all_that_it_needs() -> None:
    done = without({"onnx", "numba", "tokenizers"}, "from edgepack.cli import main\nsys.exit(main(['build', 'demo']))")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: A build needs numba, onnx and tokenizers, which are not installed.",
        "hint: pip install 'edgepack[build]'",
    ]


def test_a_tokenizer_that_needs_the_library_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    import tiny_tokenizers as tiny

    tables = compile_tokenizer(tiny.byte_level(), library=True)
    absent(monkeypatch, "tokenizers")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(
        ExtraMissingError, match=r"The tokenizer of this bundle needs tokenizers.*edgepack\[tokenizers\]"
    ):
        Tokenizer(tables, None, False)
    assert fake.model(says="a").generate("b").text == "a"
