"""``edgepack diff``, ``patch`` and ``install``, as they are typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from small_bundle import add, write

from edgepack.bundle.files import open_bundle
from edgepack.bundle.installed import STORE
from edgepack.cli import main


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write(tmp_path / "old")
    add(write(tmp_path / "new", version="0.2.0"), "notes.txt", b"what is new\n")
    write(tmp_path / "other", version="0.3.0")
    monkeypatch.setenv(STORE, str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def typed(capsys: pytest.CaptureFixture[str], line: str) -> tuple[int, str, str]:
    code = main(line.split())
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_device_is_brought_to_the_new_bundle_and_back(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert typed(capsys, "install old")[0] == 0
    code, out, _ = typed(capsys, "diff small new -o x.edgepack-delta --json")
    report = json.loads(out)
    assert (code, report["base"], report["bundle"]) == (0, open_bundle("old").id, open_bundle("new").id)
    assert report["bytes"] == (place / "x.edgepack-delta").stat().st_size < report["whole"]
    assert [each["name"] for each in report["changes"]] == ["manifest.json", "notes.txt"]
    assert typed(capsys, "install x.edgepack-delta")[0] == 0
    assert open_bundle("small").id == open_bundle("new").id
    assert typed(capsys, "rollback small")[0] == 0
    assert open_bundle("small").id == open_bundle("old").id


def test_a_folder_is_patched(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = typed(capsys, "diff old new -o x.edgepack-delta")
    assert code == 0
    assert "notes.txt" in out
    assert typed(capsys, "patch old x.edgepack-delta -o made")[0] == 0
    assert open_bundle("made").id == open_bundle("new").id


def test_another_base_is_refused_in_a_sentence(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    typed(capsys, "diff old new -o x.edgepack-delta")
    base, other = open_bundle("old").id, open_bundle("other").id
    for line, why in (
        ("patch other x.edgepack-delta -o made", f"made for sha256:{base}, and other is sha256:{other}."),
        ("install x.edgepack-delta", f"made for sha256:{base}, which is not installed here."),
    ):
        code, _, err = typed(capsys, line)
        assert (code, why in err) == (1, True), err
    assert sorted(path.name for path in place.iterdir() if path.name != "store") == [
        "new", "old", "other", "x.edgepack-delta",
    ]  # fmt: skip
