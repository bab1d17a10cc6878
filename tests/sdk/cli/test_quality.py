"""``edgepack quality``: figures of receipts, as a table, as JSON, as bars on a terminal, and as a picture."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import small_bundle
from terminal import Terminal

from edgepack.bundle.receipt import FILE
from edgepack.cli import main

LOST = {"fake-q4-cal": 0.03, "fake-q8": 0.002}
PLAIN = {"fake-q4-cal": 0.05}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return written(tmp_path / "small")


def written(folder: Path, **changes: object) -> Path:
    place = small_bundle.write(folder, [small_bundle.variant(name) for name in LOST])
    return small_bundle.add(place, FILE, small_bundle.receipt(LOST, PLAIN, **changes))


@pytest.mark.parametrize("command", ["quality", "inspect"])
def test_every_variant_has_its_figures_and_the_plain_scheme_beside(
    command: str, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, str(bundle)]) == 0
    out = capsys.readouterr().out
    lines = [line.split() for line in out.splitlines()]
    rows = {words[0]: words for words in lines if words and "±" in words and words[0] in (*LOST, "plain")}
    assert rows["fake-q4-cal"][1:4] == ["0.0300", "±", "0.0015"]
    assert rows["fake-q8"][1:5] == ["0.00200", "±", "0.00010", "0.008"]
    assert rows["plain"][1] == "0.0500"
    assert "8192 tokens held out (held.txt, abababababab)" in out
    assert "16.04 ± 0.31" in out
    assert "█" not in out  # bars are for people
    assert "##" not in out


def test_json_has_all_of_it(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", str(bundle), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["bundles"]
    calibrated, other = found["variants"]
    assert (calibrated["lost"]["kl_p99"], calibrated["plain"]["kl"], other["plain"]) == (0.12, 0.05, None)
    assert calibrated["bytes"] == len(b"weights")
    assert main(["inspect", str(bundle), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["receipt"]["variants"][1]["lost"]["kl"] == 0.002


@pytest.mark.parametrize(("encoding", "full"), [("utf-8", "█"), ("ascii", "#")])
def test_bars_are_as_long_as_losses_are_large(encoding: str, full: str, bundle: Path) -> None:
    words = [sys.executable, "-m", "edgepack", "quality", str(bundle)]
    terminal = Terminal(words, {"TERM": "dumb", "PYTHONIOENCODING": encoding}, columns=80)
    code, shown = terminal.end()
    terminal.close()
    assert code == 0
    lines = [line.rstrip("\r") for line in shown.split("\n") if not line.startswith("Next: ")]
    assert max(map(len, lines)) <= 80
    bars = {line.split()[0]: line.count(full) for line in lines if full in line}
    assert bars["plain"] == 40
    assert bars["fake-q4-cal"] == 24
    assert bars.get("fake-q8", 0) in (1, 2)


def test_the_picture_has_every_variant_and_is_the_same_again(bundle: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "a.svg", tmp_path / "b.svg"
    for place in (first, second):
        assert main(["quality", str(bundle), "-o", str(place)]) == 0
    assert first.read_bytes() == second.read_bytes()
    texts = {each.text for each in ElementTree.parse(first).iter("{http://www.w3.org/2000/svg}text")}
    assert {"fake-q4-cal", "fake-q4, plain", "fake-q8", "size, MB"} <= texts


@pytest.mark.parametrize("name", ["a.png", "no/a.svg"])
def test_a_picture_that_cannot_be_written_is_refused(
    name: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quality", str(bundle), "-o", str(tmp_path / name)]) == 2
    assert "--out" in capsys.readouterr().err


def test_without_a_receipt_it_says_how_to_get_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quality", str(small_bundle.write(tmp_path / "none"))]) == 1
    assert "edgepack build MODEL --receipt built-in --force" in capsys.readouterr().err


def test_bundles_of_one_source_and_text_share_a_picture(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path / "other")
    assert main(["quality", str(bundle), str(other), "-o", str(tmp_path / "both.svg")]) == 0
    picture = (tmp_path / "both.svg").read_text()
    assert picture.count("<circle") == 6
    assert "small: fake-q8" in picture
    assert "other: fake-q4, plain" in picture


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ({"name": "held.txt", "sha256": "cd" * 32, "tokens": 8192, "window": 512}, "another text"),
        ({"name": "held.txt", "sha256": "ab" * 32, "tokens": 512, "window": 512}, "another number of tokens"),
    ],
)
def test_figures_of_another_text_are_heard(
    text: dict[str, object], what: str, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = written(tmp_path / "other", text=text)
    assert main(["quality", str(bundle), str(other)]) == 2
    assert what in capsys.readouterr().err


def test_figures_of_another_source_are_heard(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgepack.bundle.manifest import File
    from edgepack.bundle.receipt import source_digest

    files = [File(path="model.safetensors", size=1, sha256="ef" * 32)]
    source = {
        "name": "other",
        "repository": None,
        "revision": None,
        "files": [{"path": "a", "size": 1, "sha256": "ef" * 32}],
    }
    place = small_bundle.write(tmp_path / "other", [small_bundle.variant(name) for name in LOST], source=source)
    small_bundle.add(place, FILE, small_bundle.receipt(LOST, source=source_digest(files)))
    assert main(["quality", str(place)]) == 0
    assert main(["quality", str(bundle), str(place)]) == 2
    assert "another source" in capsys.readouterr().err
