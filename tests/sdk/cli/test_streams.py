"""Standard streams as old terminals, services and shells hand them over: an answer, or one sentence that is true."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import small_bundle

from edgepack_packager.build import Built

RUN = [sys.executable, "-m", "edgepack", "run"]
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


def test_an_answer_needs_no_open_standard_input(tmp_path: Path) -> None:
    path = small_bundle.write(tmp_path / "small")
    ended = run("sh", "-c", '"$@" <&- 2>&-', "sh", sys.executable, "-m", "edgepack", "inspect", str(path))
    assert ended.returncode == 0
    assert ended.stdout.startswith(b"small ")
