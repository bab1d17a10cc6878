"""Standard streams as old terminals, services and shells hand them over: an answer, or one sentence that is true."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import small_bundle

from edgepack_packager.build import Built

EDGEPACK = [sys.executable, "-m", "edgepack"]
RUN = [*EDGEPACK, "run"]
OPTIONS = ("--backend", "onnx", "--threads", "1", "--max-tokens", "12")
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
SAID = "é👩é👩"


def run(*words: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(words, env=os.environ | (env or {}), stdin=subprocess.DEVNULL, capture_output=True)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
def test_what_a_terminal_cannot_show_is_replaced(encoding: str, demo_bundle: Built) -> None:
    ask = (*RUN, str(demo_bundle.path), "x", "--regex", "(é👩){2}", *OPTIONS)
    shown, report = (run(*ask, *more, env={"PYTHONIOENCODING": encoding}) for more in ((), ("--json",)))
    assert (shown.returncode, shown.stderr) == (report.returncode, report.stderr) == (0, b"")
    assert shown.stdout == (SAID + "\n").encode(encoding, "replace")
    assert json.loads(report.stdout.decode(encoding))["text"] == SAID


def test_the_c_locale_takes_what_was_typed(demo_bundle: Built) -> None:
    ask = (*RUN, str(demo_bundle.path), "Jürgen", "--raw", "--regex", "é", "--json", *OPTIONS)
    there, here = run(*ask, env=C_LOCALE), run(*ask)
    assert (there.returncode, here.returncode) == (0, 0), there.stderr
    one, other = (json.loads(ended.stdout) for ended in (there, here))
    assert one["repro"]["prompt_ids"] == other["repro"]["prompt_ids"]
    assert one["text"] == other["text"] == "é"


@pytest.mark.parametrize(
    ("closed", "said"),
    [
        ("<&-", "error: The prompt is empty.\nhint: Give it as an argument or on standard input.\n"),
        (">&-", "error: Standard output is closed.\nhint: Send it to a file, or to /dev/null.\n"),
        (">&- 2>&-", ""),
    ],
)
def test_a_closed_stream_is_one_sentence(closed: str, said: str, demo_bundle: Built) -> None:
    prompt = [] if closed == "<&-" else ["hi"]
    ended = run("sh", "-c", f'"$@" {closed}', "sh", *RUN, str(demo_bundle.path), *prompt)
    assert (ended.returncode, ended.stdout, ended.stderr.decode()) == (2, b"", said)


def test_json_has_nowhere_to_go_where_standard_output_is_closed(tmp_path: Path) -> None:
    ended = run("sh", "-c", '"$@" >&-', "sh", *EDGEPACK, "inspect", str(tmp_path), "--json")
    assert ended.returncode == 2
    assert ended.stderr.startswith(b"error: Standard output is closed.")


def test_an_answer_needs_no_open_standard_input(tmp_path: Path) -> None:
    path = small_bundle.write(tmp_path / "small")
    ended = run("sh", "-c", '"$@" <&- 2>&-', "sh", *EDGEPACK, "inspect", str(path))
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"small ")


COLUMNS = 80


SHOWN = [
    "plan BUNDLE",
    "inspect BUNDLE",
    "fit demo --device pi5-8gb",
    "models",
    "verify BUNDLE --replay",
    "doctor",
    "engine list",
    "bench BUNDLE -b onnx --repeats 1 --decode-tokens 2 --prompt-tokens 4",
    "eval BUNDLE --text TEXT -b onnx",
    "compare BUNDLE BUNDLE --backend-a onnx --backend-b gguf --prompts TEXT --max-tokens 2",
]

OTHERWISE = ("bench", "compare", "doctor", "eval", "verify")
"""Commands that show other figures each time, or their progress."""


@pytest.mark.parametrize("words", SHOWN)
def test_a_terminal_cuts_no_word_and_a_pipe_gets_whole_lines(
    words: str, demo_bundle: Built, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEPACK_STATE", os.devnull)  # where no speed can be kept, none is measured and shown
    (tmp_path / "text").write_text("What is a token?\n")
    monkeypatch.chdir(demo_bundle.path.parent)  # for a name that is no longer than a line
    words = words.replace("BUNDLE", demo_bundle.path.name).replace("TEXT", str(tmp_path / "text"))
    ask = [*EDGEPACK, *words.split()]
    shown, piped = on_terminal(ask), run(*ask, env={"COLUMNS": str(COLUMNS)}).stdout.decode()
    assert max(map(len, shown.splitlines())) <= COLUMNS
    assert "…" not in shown
    if words.split()[0] not in OTHERWISE:
        told = shown.partition("\nNext: ")[0]
        assert {word for word in told.split() if word.isalpha()} <= set(piped.split())
    assert not re.search(r" $|\x1b|…|^Next: ", piped, re.MULTILINE)
    last = shown.rstrip().rpartition("\n")[2]
    assert re.match("Next: edgepack |.*edgepack engine build$|Build it with: edgepack build ", last), last
    if words.startswith(("plan", "fit")):  # the others print tables alone
        assert max(map(len, piped.splitlines())) > COLUMNS


def on_terminal(words: list[str]) -> str:
    """Return what a command shows on a terminal, without colours."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")} | {"TERM": "xterm"}
    process = subprocess.Popen(words, stdin=its, stdout=its, stderr=its, env=env)
    os.close(its)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:  # the other end is closed
        pass
    process.wait()
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode()).replace("\r\n", "\n")


def test_an_interrupt_inside_an_import_ends_with_130_too(tmp_path: Path) -> None:
    """Python marks an interrupt inside a string that is executed, and ``-m`` would die of it whoever caught it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import edgepack.cli\ndef app(argv):\n    exec('raise KeyboardInterrupt')\nedgepack.cli._invoke = app\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    ended = subprocess.run([sys.executable, "-m", "edgepack"], env=environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "")
