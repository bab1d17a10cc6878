"""The power fails at any moment of an install, an update, a rollback, a removal or a clean-up of a store: what a name
stands for is the old bundle or the new, whole.

All are recorded in one run, and played to a model of a disk, which is cut at every call, several times, with another
chance each time of what was on it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest
from disks import Disk, after_a_cut, files_now
from small_bundle import variant, write
from traced import record, run_traced

from edgepack.bundle.files import open_bundle
from edgepack_ship.incoming import Folder
from edgepack_ship.store.install import install
from edgepack_ship.store.names import gc, remove, rollback, use
from edgepack_ship.store.place import Store

pytestmark = pytest.mark.hostile

CUTS = 5000
Files = dict[str, int | None]


def steps(root: Path, folders: list[Path]) -> list[Callable[[], object]]:
    """What is done to the store, one after the other."""
    store = Store(root / "store")
    first, second = (open_bundle(folder).id for folder in folders)
    return [
        lambda: install(store, Folder(folders[0]), variants=["fake-q4"]),
        lambda: install(store, Folder(folders[1])),
        lambda: rollback(store, "small"),
        lambda: install(store, Folder(folders[0]), variants=["fake-q8"]),
        lambda: use(store, "small", second),
        lambda: gc(store, previous=True),
        lambda: install(store, Folder(folders[0]), allow_downgrade=True),
        lambda: use(store, "small", first, allow_downgrade=True),
        lambda: remove(store, "small"),
    ]


STANDS_FOR = (0, 1, 0, 0, 1, 1, 0, 0, None)
"""Which of the two bundles the name stands for after each of the steps."""


def cuts(tmp_path: Path, count: int) -> list[str]:
    """Return what is broken after so many cuts."""
    root = tmp_path / "disk"
    root.mkdir()
    folders = [
        write(
            tmp_path / str(sequence),
            [variant(id, bytes([sequence]) * 7) for id in ("fake-q4", "fake-q8")],
            dict.fromkeys(("fake-q4", "fake-q8"), bytes([sequence]) * 7),
            schema={"version": 2, "features": ["sequence"]},
            sequence=sequence,
        )
        for sequence in (1, 2)
    ]
    ids = [open_bundle(folder).id for folder in folders]

    def run() -> None:
        for number, step in enumerate(steps(root, folders)):
            step()
            os.mkdir(root / f"step {number}")

    ended = run_traced(run, tmp_path / "calls")
    assert ended.kind == "answer", ended
    calls = record(tmp_path / "calls")
    whole, stands = _known(Disk(root), calls, ids)
    disk, chance, wrong = Disk(root), Random(5), []
    for number, call in enumerate(calls):
        disk.play(call)
        for _ in range(count // len(calls) + 1):
            left = after_a_cut(disk.top, chance)
            if fault := _fault(left, whole, stands):
                wrong.append(f"after call {number}, {call.name}({call.arguments}): {fault}")
                break
    return wrong


def _known(disk: Disk, calls: list[object], ids: list[str]) -> tuple[dict[str, list[Files]], dict[int, str]]:
    """Return the states in which each bundle is whole, and what each file of the name stands for."""
    whole: dict[str, list[Files]] = {id: [] for id in ids}
    stands: dict[int, str] = {}
    done = 0
    for call in calls:
        disk.play(call)  # type: ignore[arg-type]
        if f"step {done}" in disk.top.names:
            there = files_now(disk.top)
            name, number = there.get("store/names/small.json"), STANDS_FOR[done]
            assert (name is None) == (number is None)
            if name is not None and number is not None:
                stands[name] = ids[number]
            for id in ids:
                if (files := _of(there, id)) and files not in whole[id]:
                    whole[id].append(files)
            done += 1
    assert done == len(STANDS_FOR)
    assert all(len(str(each)) > 100 for id in ids for each in whole[id])
    return whole, stands


def _of(files: Files, id: str) -> Files:
    begin = f"store/bundles/{id}/"
    return {path.removeprefix(begin): file for path, file in files.items() if path.startswith(begin)}


def _fault(left: Files, whole: dict[str, list[Files]], stands: dict[int, str]) -> str | None:
    """Return what is wrong with the store that is left."""
    if "store/names/small.json" not in left:
        return None
    name = left["store/names/small.json"]
    if name is None or name not in stands:
        return "the reference is torn"
    if _of(left, stands[name]) not in whole[stands[name]]:
        return "what the name stands for is not whole"
    return None


def test_what_a_name_stands_for_is_whole_whenever_the_power_fails(
    tmp_path: Path, portion: Callable[[int], int]
) -> None:
    assert cuts(tmp_path, portion(CUTS)) == []


def _kind(descriptor: int) -> str:
    path = os.readlink(f"/proc/self/fd/{descriptor}")
    if os.path.isdir(path):
        return "folder"
    return "reference" if "small.json" in path else "file"


@pytest.mark.parametrize("dropped", ["file", "folder", "reference"])
def test_the_model_hears_a_flush_that_is_missing(dropped: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: None if _kind(descriptor) == dropped else fsync(descriptor))
    assert cuts(tmp_path, 2000)


def test_the_model_hears_a_bundle_that_goes_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgepack_ship.store import names

    monkeypatch.setattr(names, "flush", lambda path: None)
    assert cuts(tmp_path, 2000)
