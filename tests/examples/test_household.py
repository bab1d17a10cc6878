"""The household's server by its unit's own command, asked by its own client."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import programs
import pytest
import units

from edgepack.cli import main

UNIT = programs.FOLDER / "household" / "household.service"
TOKEN = "correct-horse-battery-staple"


@pytest.fixture(scope="module")
def server(one_variant: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The server's address. Both models are the demo, by two names."""
    place = tmp_path_factory.mktemp("household")
    for name in ("small", "large"):
        assert main(["install", str(one_variant), "--name", name, "--store", str(place / "store")]) == 0
    (place / "token").write_text(TOKEN)
    program, *words = units.command(UNIT)
    assert program == "/opt/edgepack/venv/bin/edgepack"
    words[words.index("8080")] = "0"
    words = [word.replace("${CREDENTIALS_DIRECTORY}", str(place)) for word in words]
    env = units.environment({"EDGEPACK_STORE": str(place / "store")})
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-m", "edgepack", *words], env=env, stdout=pipe, stderr=subprocess.DEVNULL, text=True
    ) as running:
        try:
            assert running.stdout is not None
            yield next(found[0] for line in running.stdout if (found := re.search(r"http://[\d.]+:\d+", line)))
        finally:
            running.terminate()
            running.communicate(timeout=60)
    assert running.returncode == 0


def ask(*words: str, token: str = TOKEN) -> subprocess.CompletedProcess[str]:
    start = [sys.executable, "-I", str(UNIT.with_name("ask.py")), *words]
    env = units.environment({"EDGEPACK_TOKEN": token})
    return subprocess.run(start, env=env, capture_output=True, text=True, timeout=120)


def test_each_model_answers(server: str, tmp_path: Path) -> None:
    (tmp_path / "letter.txt").write_text("What is a token?")
    first = ask(server, "What is a token?")
    other = ask(f"{server}/", "--model", "large", "--file", str(tmp_path / "letter.txt"), "Hello.")
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout.startswith("A token is a small piece of text")
    assert (other.returncode, other.stderr) == (0, "")
    assert other.stdout.strip()


@pytest.mark.parametrize(
    ("words", "token", "said"),
    [
        (("Hello",), "another-token-of-nobody", "token"),
        (("--model", "huge", "Hello"), TOKEN, "It is one of: small, large."),
        (("word " * 5000,), TOKEN, "tokens"),
        (("--file", "/nowhere/letter.txt", "Hello"), TOKEN, "No such file"),
    ],
)
def test_what_is_wrong_is_one_sentence(server: str, words: tuple[str, ...], token: str, said: str) -> None:
    ended = ask(server, *words, token=token)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_server_that_is_not_there_is_one_sentence() -> None:
    ended = ask("http://127.0.0.1:9", "Hello")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("http://127.0.0.1:9 does not answer: ")


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="needs systemd")
def test_systemd_understands_its_unit(tmp_path: Path) -> None:
    text = UNIT.read_text().replace("/opt/edgepack/venv/bin/edgepack", sys.executable)
    assert units.complaints({UNIT.name: text}, tmp_path) == []


def test_the_client_is_short() -> None:
    assert UNIT.with_name("ask.py").read_text("utf-8").count("\n") < 100
