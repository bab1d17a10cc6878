"""The power fails at any moment of a build: the disk has what was flushed, and of the rest whatever is worst.

A build is recorded, and its calls are played to a model of a disk on which a file's data last only from a flush of the
file on, and a name only from a flush of its folder on, but for the one rename that gives a bundle its name: that may
be on the disk at once, before anything that was not flushed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from disks import Disk
from models import make_llama
from traced import Call, record, run_traced

from edgepack.bundle import work
from edgepack.isolation import probing
from edgepack.runtime import Support
from edgepack_packager.build import build
from edgepack_packager.recipe import Recipe

pytestmark = pytest.mark.hostile


def faults(calls: list[Call], root: Path, out: Path) -> list[str]:
    """Return what a cut of the power would break, at any moment of a record."""
    disk, end = Disk(root), Disk(root)
    for call in calls:
        end.play(call)
    whole = end.node(str(out))
    assert whole is not None
    assert len(str(whole.now())) > 100
    found = []
    for number, call in enumerate(calls):
        disk.play(call)
        named = disk.node(str(out))
        if named is not None and named.lasting() != whole.now():
            found.append(f"after call {number}, {call.name}: {out.name} is not whole on the disk")
    told = end.top
    for name in out.relative_to(root).parts:
        if name not in told.flushed:
            return [*found, f"at the end: {name} is not on the disk"]
        told = told.flushed[name]
    return found


def recorded(tmp_path: Path) -> list[str]:
    source = make_llama(tmp_path / "model", layers=1)
    root = tmp_path / "disk"
    root.mkdir()
    out, recipe = root / "new" / "deep" / "out", Recipe(("gguf", "mlx", "onnx"), ("q8",), unproven=True)
    ended = run_traced(lambda: build(str(source), recipe, out).id, tmp_path / "calls")
    assert ended.kind == "answer", ended
    return faults(record(tmp_path / "calls"), root, out)


@pytest.fixture(autouse=True)
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probing, "probe", lambda name, machine, **asked: Support((), reason="it is not asked"))


def test_a_bundle_is_on_the_disk_before_its_name_and_its_name_before_the_end(tmp_path: Path) -> None:
    assert recorded(tmp_path) == []


def without_files(flush: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: None if path.is_file() else flush(path)


def without_folders(flush: Callable[[Path], None]) -> Callable[[Path], None]:
    return lambda path: None if path.is_dir() else flush(path)


@pytest.mark.parametrize("mutant", [without_files, without_folders])
def test_the_model_hears_a_flush_that_is_missing(
    mutant: Callable[[Callable[[Path], None]], Callable[[Path], None]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "flush", mutant(work.flush))
    assert any("is not whole on the disk" in each for each in recorded(tmp_path))


def test_the_model_hears_a_name_that_comes_before_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def early(bundle: Path, out: Path, force: bool = False) -> None:
        bundle.rename(out)
        for path in [*out.rglob("*"), out, out.parent]:
            work.flush(path)

    monkeypatch.setattr(work, "publish", early)
    assert any("is not whole on the disk" in each for each in recorded(tmp_path))
