"""What holds for each program in ``examples``: it is short, says how to run it, and answers a mistake in a sentence."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import programs
import pytest

TABLE = (programs.FOLDER / "README.md").read_text("utf-8")


def test_the_table_has_each_of_them() -> None:
    assert re.findall(r"^\| \[(\w+\.py)\]\(\1\)", TABLE, re.MULTILINE) == sorted(
        programs.NAMES, key=lambda name: TABLE.index(f"[{name}]")
    )


@pytest.mark.parametrize("name", programs.NAMES)
def test_it_is_short_and_says_how_to_run_it(name: str) -> None:
    source = (programs.FOLDER / name).read_text("utf-8")
    assert source.count("\n") < 100
    assert f"\npython examples/{name} demo.edgepack" in (ast.get_docstring(ast.parse(source)) or "")


@pytest.mark.parametrize(
    ("name", "others"),
    [
        ("anywhere.py", ["question"]),
        ("app.py", ["question"]),
        ("batch.py", ["input", "output"]),
        ("extract.py", ["input"]),
        ("pi_service.py", ["socket"]),
        ("web.py", []),
    ],
)
def test_a_bundle_that_is_not_there_is_one_sentence(name: str, others: list[str], tmp_path: Path) -> None:
    (tmp_path / "input").touch()
    ended = programs.run(name, "nowhere.edgepack", *(str(tmp_path / word) for word in others))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "There is no bundle at nowhere.edgepack. Check the path.\n"


def test_an_app_in_a_page_answers(one_variant: Path) -> None:
    ended = programs.run("app.py", one_variant, "What is a token?")
    assert ended.returncode == 0, ended.stderr
    assert "piece of text" in ended.stdout
    assert re.search(r"^\[\S+ on cpu: .+\]\n\n\[stop, \d+ tokens\]\n$", ended.stderr)
