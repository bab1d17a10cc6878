"""Data extraction: a row for each text that has one, a sentence for each that has not."""

from __future__ import annotations

import json
from pathlib import Path

import programs
import pytest

from edgepack import fake

PEOPLE = sorted((programs.FOLDER / "people").glob("*.txt"))
TABLE = "file,name,age,city\nnoah.txt,Noah,90,Vienna\nomar.txt,Omar,11,Porto\nwalter.txt,Walter,71,Lyon\n"


def test_texts_become_typed_rows(one_variant: Path) -> None:
    ended = programs.run("extract.py", one_variant, *PEOPLE)
    assert (ended.returncode, ended.stderr, ended.stdout) == (0, "", TABLE)


def test_a_text_that_gives_no_row_costs_no_other_its_own(one_variant: Path, tmp_path: Path) -> None:
    long, torn = tmp_path / "long.txt", tmp_path / "torn.txt"
    long.write_text("Once upon a time. " * 2000)
    torn.write_bytes(b"\xff")
    absent = tmp_path / "absent.txt"
    ended = programs.run("extract.py", one_variant, long, torn, absent, *PEOPLE)
    assert (ended.returncode, ended.stdout) == (1, TABLE)
    sentences = ended.stderr.splitlines()
    assert [line.split(": ")[0] for line in sentences] == [str(long), str(torn), str(absent)]
    assert "tokens" in sentences[0]


def test_a_value_that_only_closes_the_answer_is_no_row() -> None:
    extract = programs.load("extract.py").extract
    said = json.dumps({"name": "a" * 40, "age": 3, "city": "b" * 40}, separators=(",", ":"))
    with fake.model(says=said) as model:
        assert extract(model, "?").name == "a" * 40
    with fake.model(says=said, context=130) as model, pytest.raises(ValueError, match="cut"):
        extract(model, "?")
