"""What a command says of itself: a sentence for each option, groups, examples that parse, and what shells complete."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from edgepack.cli import main
from edgepack.cli.app import app_for

GROUPED = ("run", "bench", "build")


def commands() -> Iterator[tuple[str, Any, typer.Context]]:
    """Yield every command, those of groups too, as it is typed after ``edgepack``."""
    program: Any = typer.main.get_command(app_for([]))
    with program.make_context("edgepack", ["run"], resilient_parsing=True) as context:
        for name, command in program.commands.items():
            yield name, command, context
            yield from ((f"{name} {inner}", each, context) for inner, each in getattr(command, "commands", {}).items())


COMMANDS = {name: (command, context) for name, command, context in commands()}


def parameters(command: Any, context: typer.Context) -> list[tuple[Any, tuple[str, str]]]:
    return [(each, record) for each in command.get_params(context) if (record := each.get_help_record(context))]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_argument_and_option_has_its_sentence(name: str) -> None:
    for parameter, (_, sentence) in parameters(*COMMANDS[name]):
        assert re.match(r"[A-Z`a-z].*\S", sentence), parameter.opts
        assert not sentence.startswith("["), parameter.opts


@pytest.mark.parametrize("width", ["80", "120"])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_cuts_no_word_and_pads_no_line(
    name: str, width: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    assert main([*name.split(), "-h"]) == 0
    short = capsys.readouterr().out
    assert main([*name.split(), "--help"]) == 0
    assert capsys.readouterr().out == short
    for line in short.splitlines():
        assert line == line.rstrip()
        assert len(line) <= 80
        assert "…" not in line
        assert not re.search(r"\w\.\.\.$", line)
        assert not re.search(r"<(str|int|float|path|list)\b", line), "a type is no word for what an option takes"


@pytest.mark.parametrize("name", GROUPED)
def test_options_stand_in_groups(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "-h"]) == 0
    shown = capsys.readouterr().out
    headings = re.findall(r"^(\S.*):$", shown, re.MULTILINE)
    assert len(headings) >= 5
    assert headings[0] == "Arguments"
    assert headings[-2:] == ["Options", "Examples"]


def examples() -> list[str]:
    return [line for command, _ in COMMANDS.values() for line in (command.epilog or "").splitlines()]


def test_there_are_examples() -> None:
    for name, (command, _) in COMMANDS.items():
        assert command.epilog or getattr(command, "commands", None) or name.startswith("engine "), name


@pytest.mark.parametrize("line", examples())
def test_an_example_is_a_command_line(line: str) -> None:
    words = shlex.split(line, comments=True)
    assert words[0] == "edgepack"
    words = words[: next((i for i, word in enumerate(words) if word in ("<", ">")), None)]
    command, context = COMMANDS[words[1]]
    with command.make_context(words[1], words[2:], parent=context):  # parses, and does nothing
        pass


def test_a_short_option_is_the_same_everywhere() -> None:
    longs: dict[str, set[str]] = {}
    for command, context in COMMANDS.values():
        for parameter, _ in parameters(command, context):
            for short in parameter.opts:
                if re.fullmatch("-[a-zA-Z]", short):
                    longs.setdefault(short, set()).add(max(parameter.opts, key=len))
    assert {short: len(names) for short, names in longs.items()} == dict.fromkeys(longs, 1), longs
    assert {"-b", "-c", "-o", "-q", "-t"} <= set(longs)


def test_an_option_of_many_commands_has_its_short_form_in_all() -> None:
    for long, short in {"--context": "-c", "--backend": "-b", "--out": "-o", "--target": "-t"}.items():
        for name, (command, context) in COMMANDS.items():
            for parameter, _ in parameters(command, context):
                if long in parameter.opts:
                    assert short in parameter.opts, name


# Completion


def complete(shell: str, typed: str) -> str:
    words = typed.split(" ")
    bash = {"COMP_WORDS": typed, "COMP_CWORD": str(len(words) - 1)}
    others = {"_TYPER_COMPLETE_ARGS": typed, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    asked = {"_EDGEPACK_COMPLETE": f"complete_{shell}", **(bash if shell == "bash" else others)}
    said = subprocess.run(
        [sys.executable, "-m", "edgepack"], env=os.environ | asked, capture_output=True, text=True, check=False
    )
    assert (said.returncode, said.stderr) == (0, "")
    return said.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("edgepack ru", ["run"]),
        ("edgepack run", ["run"]),
        ("edgepack run demo --sys", ["--system", "--system-file"]),
        ("edgepack build smollm2-1", ["smollm2-135m", "smollm2-1.7b"]),
        ("edgepack fit x --device pi5-", ["pi5-2gb", "pi5-16gb"]),
        ("edgepack bench x -b o", ["onnx"]),
        ("edgepack build x -t a", ["all"]),
        ("edgepack engine li", ["list"]),
    ],
)
def test_a_shell_completes(shell: str, typed: str, offered: list[str]) -> None:
    said = complete(shell, typed)
    for word in offered:
        assert re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", said.replace("\\\\", "")), said


def test_zsh_is_offered_what_begins_with_the_part_that_words_share(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    offered = complete("zsh", "edgepack build smollm-").split('"')
    assert {"smollm2-135m", "smollm3-3b"} <= set(offered)
    assert '"--no-think"' in complete("zsh", "edgepack run --no-th")
    assert "run" not in complete("zsh", "edgepack run demo --no-th").split('"')
    (tmp_path / "smollm2-135m-mine").mkdir()
    assert "smollm2" not in complete("zsh", "edgepack build smollm2-135m-m")


def test_zsh_shows_the_quotes_of_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "C")
    assert complete("zsh", "edgepack ru").isascii()
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    single, double = "\N{RIGHT SINGLE QUOTATION MARK}", "\N{RIGHT DOUBLE QUOTATION MARK}"
    assert f"the bundle{single}s defaults" in complete("zsh", "edgepack ru")
    assert f"{double}3{double}" in complete("zsh", "edgepack run demo --va")
    assert "the bundle's defaults" in complete("fish", "edgepack ru")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell_is_one_that_it_can_read(shell: str, tmp_path: Path) -> None:
    asked = os.environ | {"_EDGEPACK_COMPLETE": f"source_{shell}"}
    said = subprocess.run([sys.executable, "-m", "edgepack"], env=asked, capture_output=True, text=True, check=False)
    assert said.returncode == 0
    assert "_EDGEPACK_COMPLETE" in said.stdout
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell} here to read it")
    script = tmp_path / "script"
    script.write_text(said.stdout)
    subprocess.run([shell, "-n", str(script)], check=True)
