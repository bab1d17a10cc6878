"""A bundle in a bundle: a draft model is opened and checked by the rules of any, and pinned by its id."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import small_bundle

import edgepack
from edgepack import FakeRuntime
from edgepack.bundle.files import open_bundle
from edgepack.bundle.manifest import encode
from edgepack.cli import main
from edgepack.errors import BundleDamagedError, BundleTooNewError, UsageError

WEIGHTS = "draft/variants/fake-q4/model.bin"
ENGINE = {"fake": FakeRuntime()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return small_bundle.write_with_draft(tmp_path / "two")


def test_the_draft_is_a_bundle_of_its_own(folder: Path) -> None:
    bundle = open_bundle(folder)
    assert bundle.draft is not None
    assert bundle.draft == open_bundle(folder / "draft")
    assert bundle.manifest.draft == bundle.draft.id
    assert bundle.draft.manifest.name == "smaller"
    assert WEIGHTS in bundle.files()
    assert bundle.size() == bundle.size(["fake-q4"]) + bundle.draft.size()


def test_a_manifest_without_a_draft_does_not_speak_of_one(tmp_path: Path) -> None:
    bundle = open_bundle(small_bundle.write(tmp_path / "one"))
    assert bundle.draft is None
    assert b"draft" not in encode(bundle.manifest)


def change(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def link(folder: Path) -> None:
    shutil.move(folder / "draft", folder.parent / "elsewhere")
    (folder / "draft").symlink_to(folder.parent / "elsewhere")


def a_third(folder: Path) -> None:
    """The draft is a bundle with a draft, and pinned as such."""
    shutil.rmtree(folder / "draft")
    inner = small_bundle.write_with_draft(folder / "draft")
    plain = json.loads((folder / "manifest.json").read_bytes()) | {"draft": open_bundle(inner).id}
    (folder / "manifest.json").write_text(json.dumps(plain))


FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda folder: shutil.rmtree(folder / "draft"), "it is missing"),
    "no manifest": (lambda folder: (folder / "draft" / "manifest.json").unlink(), "it is missing"),
    "a link": (link, "symbolic link"),
    "a file": (lambda folder: (shutil.rmtree(folder / "draft"), (folder / "draft").write_bytes(b"")), "does not list"),
    "another": (lambda folder: (folder / "draft/manifest.json").open("a").write("\n"), "it is another bundle"),
    "longer weights": (change(WEIGHTS, b"more weights"), "In draft/: .*model.bin"),
    "other weights": (change(WEIGHTS, b"WEIGHTS"), WEIGHTS),
    "a stranger": (change("draft/variants/fake-q4/more.bin", b""), "In draft/: .*more.bin"),
    "a third": (a_third, "has a draft of its own"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_draft_is_a_damaged_bundle(fault: str, folder: Path) -> None:
    damage, what = FAULTS[fault]
    damage(folder)
    with pytest.raises(BundleDamagedError, match=what):
        open_bundle(folder)


def test_files_of_a_draft_are_listed_by_its_own_manifest_alone(folder: Path) -> None:
    path = folder / "manifest.json"
    plain = json.loads(path.read_bytes())
    plain["files"].append(small_bundle.entry("draft/LICENSE", b"MIT\n"))
    path.write_text(json.dumps(plain))
    with pytest.raises(BundleDamagedError, match="below draft/"):
        open_bundle(folder)


def test_a_reader_that_knows_no_drafts_refuses(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgepack.bundle.manifest.FEATURES", frozenset())
    with pytest.raises(BundleTooNewError, match="'draft'"):
        open_bundle(folder)


def test_a_draft_is_loaded_where_it_is_asked_for(folder: Path) -> None:
    with edgepack.load(folder, runtimes=ENGINE) as alone, edgepack.load(folder, draft=True, runtimes=ENGINE) as model:
        assert alone.setup.draft is None
        assert model.setup.draft == "fake-q4"
        result = model.generate("hello", max_tokens=40)
        assert result.usage.accepted_tokens > 0
        assert result.token_ids == alone.generate("hello", max_tokens=40).token_ids


def test_the_weights_of_a_draft_are_checked_before_an_engine_sees_them(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"WEIGHTS")
    with pytest.raises(BundleDamagedError, match=r"model\.bin"):
        edgepack.load(folder, draft=True, runtimes=ENGINE)
    edgepack.load(folder, draft=False, runtimes=ENGINE).close()


def test_a_draft_that_is_not_there_is_refused(tmp_path: Path) -> None:
    place = small_bundle.write(tmp_path / "one")
    with pytest.raises(UsageError, match="holds no draft") as caught:
        edgepack.load(place, draft=True, runtimes=ENGINE)
    assert "--draft" in str(caught.value)
    with pytest.raises(UsageError, match="draft cannot be"):
        edgepack.load(place, draft="yes", runtimes=ENGINE)  # type: ignore[arg-type]


def test_inspect_and_verify_tell_of_the_draft(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(folder)]) == 0
    assert "smaller" in capsys.readouterr().out
    assert main(["inspect", str(folder), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draft"]["name"] == "smaller"
    assert main(["verify", str(folder), "--json", "--replay"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == len(open_bundle(folder).files())
    assert [each["name"] for each in said["replays"] if each["name"].startswith("draft: ")]
