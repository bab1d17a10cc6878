"""Foreign text in errors, reports and answers: what a terminal would obey is written out, and secrets are left out."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import small_bundle

from edgepack.cli import main, screen, textfile
from edgepack.cli.interrupts import Interrupts
from edgepack.cli.spoken import Spoken
from edgepack.errors import EdgepackError, UsageError, visible, without_secrets

ATTACK = "\x1b[2J\x1b]0;owned[bold red]x[/]\u202egnp.\x9b31m"
SHOWN = "\\u001b[2J\\u001b]0;owned[bold red]x[/]\\u202egnp.\\u009b31m"


def test_an_error_is_one_line_that_no_terminal_obeys() -> None:
    error = EdgepackError(f"{ATTACK}\r\nerror: forged", hint=f"{ATTACK}\udcff")
    assert error.message == f"{SHOWN}\\r\\nerror: forged"
    assert error.hint == f"{SHOWN}\\udcff"
    assert str(error) == f"{error.message} {error.hint}"
    assert visible("a\tb\nc 👩\u200d🚀 é", keep="\n\t") == "a\tb\nc 👩\u200d🚀 é"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:p@ss@host:1/a@b", "http://host:1/a@b"),
        ("see https://token@host, or x@y.z", "see https://host, or x@y.z"),
        ("https://h/a?x=1&X-Amz-Signature=abc&y=2", "https://h/a?x=1&X-Amz-Signature=***&y=2"),
        ("the token hf_abcdefGHIJ is wrong", "the token hf_*** is wrong"),
        ("{'Authorization': 'Bearer abcdefgh1'}", "{'Authorization': 'Bearer ***'}"),
        ("https://hub.co/owner/name@main, a bearer of news", "https://hub.co/owner/name@main, a bearer of news"),
    ],
)  # fmt: skip
def test_secrets_are_left_out(text: str, shown: str) -> None:
    assert without_secrets(text) == EdgepackError(text).message == shown


@pytest.mark.parametrize("piece", ["?", "?token", "&key?", "://", "a=?sig=b", "bearer ", "authorization:  "])
def test_a_long_text_is_read_once(piece: str) -> None:
    begun = time.process_time()
    assert without_secrets(piece * 100_000)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize("words", [["inspect"], ["verify"], ["plan"], ["inspect", "--json"], ["verify", "--json"]])
def test_a_report_shows_a_hostile_name_as_text(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    licence = {"id": "MIT", "files": ["LICENSE"], "notice": ATTACK}
    folder = small_bundle.write(tmp_path / "small", name=ATTACK, license=licence)
    main([words[0], str(folder), *words[1:]])
    said = capsys.readouterr()
    assert not set(said.out + said.err) & set("\x1b\x9b\u202e")
    if "--json" in words:
        assert json.loads(said.out)["name"] == ATTACK
    else:
        assert SHOWN in said.out + said.err


def test_a_fault_is_shown_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", f"/none/{ATTACK}"]) == 1
    assert SHOWN in capsys.readouterr().err
    assert main([f"--{ATTACK}"]) == 2
    assert "\x1b" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError(ATTACK), OSError(5, "No", ATTACK)])
def test_a_raw_error_is_shown_escaped(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: list[str]) -> int:
        raise error

    monkeypatch.setattr("edgepack.cli._invoke", fail)
    assert main([]) == 1
    assert SHOWN in capsys.readouterr().err


def test_progress_and_notes_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    screen.say(screen.err(), ATTACK)
    for made in (screen.bar(), screen.steps(), screen.stages()):
        made.add_task(ATTACK, total=1)
        made.console.print(made.get_renderable())
    said = capsys.readouterr().err
    assert said.count("[bold red") == 4
    assert "\x1b" not in said


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_a_stage_of_many_variants_leaves_its_figures_whole(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # rich takes it for a terminal
    title = "Writing gguf-q4_k_m, gguf-q5_k_m, mlx-4bit_mixed, onnx-int4_mixed, onnx-int8"
    made = screen.stages()
    made.add_task(title, total=1, completed=1)
    with made.console.capture() as captured:
        made.console.print(made.get_renderable())
    lines = re.sub(r"\x1b\[[0-9;]*m", "", captured.get()).splitlines()
    assert max(map(len, lines)) <= columns
    assert re.search(r"━{10,} 100% [0-9:-]{5}$", lines[0])
    assert " ".join(line.partition("━")[0] for line in lines).split() == title.split()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("pieces", [[ATTACK + "\tend\n"], list(ATTACK + "\tend\n")])
def test_an_answer_is_obeyed_by_no_terminal_and_whole_in_a_pipe(
    pieces: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for stream, expected in ((Terminal(), SHOWN + "\tend\n"), (io.StringIO(), ATTACK + "\tend\n")):
        monkeypatch.setattr(sys, "stdout", stream)
        spoken = Spoken()
        for piece in pieces:
            spoken.write(piece)
        spoken.end("!")
        assert stream.getvalue() == expected + "!"


@pytest.mark.parametrize("width", [1, 7, 20, 200])
def test_an_answer_is_broken_between_words(width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "The quick brown fox\n    jumps over  the lazydogandmore, 東京は日本の首都です。 👩\u200d🚀 ok \n\nend"
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    spoken = Spoken()
    for letter in text:
        spoken.write(letter)
    spoken.end("")
    shown = sys.stdout.getvalue()  # type: ignore[attr-defined]
    assert "".join(shown.split()) == "".join(text.split())
    from rich.cells import cell_len

    for line in shown.split("\n"):
        assert cell_len(line) <= width or len(line.split()) == 1
    if width == 200:
        assert shown == text


def test_a_schema_is_given_as_it_is_or_by_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"type": "null"}')
    assert textfile.schema(str(tmp_path / "a.json")) == '{"type": "null"}'
    assert textfile.schema(' {"type": "object"}') == ' {"type": "object"}'
    with pytest.raises(UsageError, match="cannot be read"):
        textfile.schema(str(tmp_path / "{}.json"))


@pytest.mark.usefixtures("hangup")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_ends_a_command_as_ctrl_c_does(name: str) -> None:
    number = getattr(signal, name)
    with pytest.raises(KeyboardInterrupt), Interrupts():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is signal.SIG_DFL


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupts() as interrupts:
            os.kill(os.getpid(), signal.SIGHUP)
            interrupts.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_interrupt_that_was_swallowed_is_raised_at_the_next_step() -> None:
    def swallowed(step: Callable[[], None]) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except KeyboardInterrupt:
            step()

    with Interrupts() as interrupts, pytest.raises(KeyboardInterrupt):
        swallowed(interrupts.check)
