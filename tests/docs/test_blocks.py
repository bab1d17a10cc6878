"""Every code block of the README and of the site's pages runs as it stands, or says why it cannot.

The blocks of a page run one after the other in one folder, which looks like a clone with the demo bundle in it. One
that is not run has a comment before it, ``<!-- not run: REASON -->``, or stands in a page that has one at its top; its
commands must exist all the same, with their options. Blocks of the README that have a name are run by ``.ci/run`` or
``tests/test_readme.py``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer

from edgepack.cli.app import app_for
from edgepack_packager.build import Built

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
SHELL = ["bash", "-euo", "pipefail", "-c"]
_BLOCK = re.compile(r"((?:^<!--(?:(?!-->)[\s\S])*-->\n)*)^```(sh|python)\n(.*?)^```$", re.M | re.S)
_NOT_RUN = re.compile(r"<!-- not run: (?:(?!-->)[\s\S])+ -->")
_NAMED = re.compile(r"<!-- ([a-z]+) -->")
_ELSEWHERE = {
    "command_of {})": (ROOT / ".ci" / "run").read_text("utf-8"),
    'lines_of("{}")': (ROOT / "tests" / "test_readme.py").read_text("utf-8"),
}
"""How others ask for a block of the README by its name, and their texts."""
_SCRIPT = re.compile(r"\b(?:benchmarks|examples)/\w+\.py\b")


@dataclass(frozen=True)
class Block:
    language: str
    code: str
    run: bool


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page: of sh and Python."""
    text = page.read_text("utf-8")
    none = "\n<!-- not run, none of this page: " in text
    found = []
    for before, language, code in _BLOCK.findall(text):
        name = _NAMED.search(before)
        asked = name is not None and any(asking.format(name[1]) in asker for asking, asker in _ELSEWHERE.items())
        found.append(Block(language, code, not (none or asked or _NOT_RUN.search(before))))
    return found


RUN = [page for page in PAGES if any(block.run for block in blocks(page))]


def test_no_block_escapes() -> None:
    fences = sum(len(re.findall(r"^\s*```(?:sh|python)\b", page.read_text("utf-8"), re.M)) for page in PAGES)
    assert fences == sum(len(blocks(page)) for page in PAGES) > 20


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run(page: Path, demo_bundle: Built, tmp_path: Path) -> None:
    for place in ROOT.iterdir():
        if not place.name.startswith(".") and place.suffix != ".edgepack":
            (tmp_path / place.name).symlink_to(place)
    (tmp_path / "demo.edgepack").symlink_to(demo_bundle.path)
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))
    for block in blocks(page):
        if block.run:
            start = [sys.executable, "-c"] if block.language == "python" else SHELL
            done = subprocess.run(
                [*start, block.code],
                cwd=tmp_path,
                env=os.environ | {"PATH": path},
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
            assert block.language == "sh" or (done.stdout and not done.stderr), f"{block.code}\n{done.stderr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_its_commands_and_scripts_exist(page: Path) -> None:
    text = "\n".join(block.code for block in blocks(page) if block.language == "sh")
    assert [name for name in _SCRIPT.findall(text) if not (ROOT / name).exists()] == []
    for words in command_lines(text):
        command, options = found(words)
        assert [word for word in words if word.startswith("-") and word.partition("=")[0] not in options] == [], command


def test_an_option_that_is_none_would_be_found() -> None:
    (words,) = command_lines("EDGEPACK_CACHE=x edgepack engine build --fro pi5 > log  # wrong\n")
    command, options = found(words)
    assert command.name == "build"
    assert "--for" in options
    assert "--fro" not in options


def command_lines(code: str) -> Iterator[list[str]]:
    """Yield the words of each edgepack command of a script, without its name and what a shell reads itself."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if "edgepack" in words and words[0] != "llm":  # to which edgepack is the name of a model
            words = words[words.index("edgepack") + 1 :]
            ends = [at for at, word in enumerate(words) if word in {"&&", "||", "|", ">", ";", "<"}]
            yield words[: ends[0]] if ends else words


@cache
def program() -> Any:
    """Return the whole command line, with every command."""
    return typer.main.get_command(app_for([]))


def found(words: list[str]) -> tuple[Any, set[str]]:
    """Return a command and its options. Raises ``KeyError`` for one that there is not."""
    command, words = program(), list(words)
    while hasattr(command, "commands") and words and not words[0].startswith("-"):
        command = command.commands[words.pop(0)]
    options = {name for each in command.params for name in (*each.opts, *each.secondary_opts)}
    return command, options | {"--help", "-h", "--install-completion", "--show-completion"}
