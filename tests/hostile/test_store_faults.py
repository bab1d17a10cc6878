"""A command of the store that is killed at any of its file-system calls, or one of whose calls fails: the name stands
for the old bundle or the new, whole; an error is a sentence; and the same command again succeeds."""

from __future__ import annotations

import itertools
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from limited import in_child
from small_bundle import variant, write
from traced import READING, WRITING, counts, record, run_traced

from edgepack.bundle.files import open_bundle
from edgepack.bundle.installed import find
from edgepack.errors import EdgepackError
from edgepack_ship.delta.difference import Difference
from edgepack_ship.diffing import diff
from edgepack_ship.incoming import Folder
from edgepack_ship.store.install import install
from edgepack_ship.store.names import gc, remove, rollback
from edgepack_ship.store.place import Store

pytestmark = pytest.mark.hostile

FULL = ("ENOSPC", "EROFS")


def made(folder: Path, sequence: int) -> Path:
    ids, payload = ("fake-q4", "fake-q8"), bytes([sequence]) * 7
    changes = {"schema": {"version": 2, "features": ["sequence"]}, "sequence": sequence}
    return write(folder, [variant(id, payload) for id in ids], dict.fromkeys(ids, payload), **changes)


@pytest.fixture
def bundles(tmp_path: Path) -> list[Path]:
    """Three bundles, and the difference from the first to the second."""
    folders = [made(tmp_path / f"bundle {sequence}", sequence) for sequence in (1, 2, 3)]
    diff(open_bundle(folders[0]), open_bundle(folders[1]), tmp_path / "delta")
    return [*folders, tmp_path / "delta"]


def _install(number: int, *variants: str) -> Callable[[Store, list[Path]], object]:
    return lambda store, bundles: install(store, Folder(bundles[number]), variants=variants or None).id


COMMANDS: dict[str, tuple[list[Callable[[Store, list[Path]], object]], Callable[[Store, list[Path]], object]]] = {
    "install": ([], _install(0)),
    "update": ([_install(0)], _install(1)),
    "delta": ([_install(0)], lambda store, bundles: install(store, Difference(bundles[3], store.present)).id),
    "another variant": ([_install(0, "fake-q4")], _install(0, "fake-q8")),
    "rollback": ([_install(0), _install(1)], lambda store, _: rollback(store, "small")),
    "remove": ([_install(0), _install(1)], lambda store, _: remove(store, "small")),
    "gc": ([_install(0), _install(1), _install(2)], lambda store, _: gc(store)),
}
"""What is done before, and the command that meets the fault."""


def _race(store: Store, folders: list[Path], failed: multiprocessing.Queue[str]) -> None:
    try:
        for folder in folders:
            install(store, Folder(folder), "small", allow_downgrade=True)
    except Exception as error:
        failed.put(repr(error))


def test_two_installers_race_and_the_store_is_whole(
    bundles: list[Path], tmp_path: Path, portion: Callable[[int], int]
) -> None:
    fork = multiprocessing.get_context("fork")
    for number in range(portion(50)):
        store, failed = Store(tmp_path / f"race {number}"), fork.Queue()
        folders = bundles[:3]
        racers = [fork.Process(target=_race, args=(store, order, failed)) for order in (folders, folders[::-1])]
        for each in racers:
            each.start()
        for each in racers:
            each.join()
        assert failed.empty(), failed.get()
        assert check(store, f"race {number}") == []
        assert find("small", [store.folder]) is not None
        assert gc(store) >= 0
        assert check(store, f"race {number}, cleaned up") == []


def check(store: Store, fault: str) -> list[str]:
    """Return what is wrong with a store after a fault."""
    try:
        there = find("small", [store.folder])
        if there is not None:
            open_bundle(there)
        for id in store.bundles():
            open_bundle(store.bundle(id))
    except EdgepackError as error:
        return [f"{fault}: {error}"]
    return []


@pytest.mark.parametrize("name", COMMANDS)
def test_whatever_happens_to_a_call_the_store_is_whole_and_a_retry_succeeds(
    name: str, bundles: list[Path], tmp_path: Path, portion: Callable[[int], int]
) -> None:
    before, command = COMMANDS[name]
    start, log = Store(tmp_path / "start"), tmp_path / "calls"
    for each in before:
        each(start, bundles)

    def fresh(number: object) -> Store:
        if start.folder.exists():
            shutil.copytree(start.folder, tmp_path / f"store {number}")
        return Store(tmp_path / f"store {number}")

    dry = fresh("dry")
    assert run_traced(lambda: command(dry, bundles), log).kind == "answer"
    found = counts(record(log))
    faults = [f"{call}:signal=KILL:when={n}" for call in WRITING for n in range(1, found.get(call, 0) + 1)]
    faults += [f"{call}:error={e}:when={n}" for e in FULL for call in WRITING for n in range(1, found.get(call, 0) + 1)]
    faults += [f"{call}:error=EIO:when={n}" for call in (*WRITING, *READING) for n in range(1, found.get(call, 0) + 1)]
    assert len(faults) > 30
    wrong = []
    for number, fault in enumerate(itertools.islice(faults, 0, None, max(1, len(faults) // portion(len(faults))))):
        store = fresh(number)
        ended = run_traced(lambda: command(store, bundles), log, fault)  # noqa: B023
        if not ended.clean and ended.kind != "signal SIGKILL":
            wrong.append(f"{fault}: {ended.kind}: {ended.text}")
        if ended.clean and "Errno" in ended.text:
            wrong.append(f"{fault}: {ended.text}")
        wrong += check(store, fault)
        again = in_child(lambda: command(store, bundles))  # noqa: B023
        if again.kind != "answer" and not (name in ("rollback", "remove") and again.kind == "BundleNotFoundError"):
            wrong.append(f"{fault}, again: {again.kind}: {again.text}")
        wrong += check(store, f"{fault}, again")
        shutil.rmtree(store.folder, ignore_errors=True)
    assert not wrong, "\n".join(wrong)
