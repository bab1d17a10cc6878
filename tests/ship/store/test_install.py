"""Bundles come into a store: whole, once, in steps that can be taken up and taken back."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from small_bundle import add, receipt, variant, write, write_with_draft

from edgepack.bundle.files import open_bundle
from edgepack.bundle.installed import STORE, find, known
from edgepack.bundle.manifest import File
from edgepack.errors import BundleDamagedError, BundleNotFoundError, EngineError, StoreError, TrustError, UsageError
from edgepack_ship.contents import Contents
from edgepack_ship.incoming import Folder
from edgepack_ship.parts import split
from edgepack_ship.store.install import Installed, install
from edgepack_ship.store.names import gc, remove, rollback, use
from edgepack_ship.store.place import Store
from edgepack_ship.writing import write_bundle


def bundle(folder: Path, *ids: str, sequence: int = 0, payload: bytes = b"weights") -> Path:
    """A bundle of some variants; a sequence makes it another one."""
    features = {"schema": {"version": 2, "features": ["sequence"]}, "sequence": sequence} if sequence else {}
    ids = ids or ("fake-q4",)
    return write(folder, [variant(id, payload) for id in ids], dict.fromkeys(ids, payload), **features)


def put(store: Store, folder: Path, *variants: str, name: str = "small", allow_downgrade: bool = False) -> Installed:
    return install(store, Folder(folder), name, variants or None, allow_downgrade=allow_downgrade)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_a_bundle_is_installed_and_found_by_its_name(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = open_bundle(bundle(tmp_path / "one"))
    done = put(store, made.path)
    monkeypatch.setenv(STORE, str(store.folder))
    there = open_bundle("small")
    assert (there.id, there.path, done.previous) == (made.id, done.path, None)
    assert list(store.staging.iterdir()) == []


def test_the_names_of_all_stores_are_known(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other, nothing = Store(tmp_path / "other"), tmp_path / "nothing"
    put(store, bundle(tmp_path / "one"), name="b")
    put(other, bundle(tmp_path / "two"), name="a")
    put(other, bundle(tmp_path / "three"), name="b")
    (store.folder / "names" / ".new.json").touch()
    nothing.touch()
    monkeypatch.setenv(STORE, os.pathsep.join(map(str, (store.folder, nothing, tmp_path / "nowhere", other.folder))))
    assert known() == ["a", "b"]


def test_its_own_name_is_taken_where_no_other_is_given(store: Store, tmp_path: Path) -> None:
    assert install(store, Folder(bundle(tmp_path / "one"))).name == "small"


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "../up", "a b", "a\0b", "x" * 200])
def test_a_name_that_a_file_system_would_bend_is_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="Nothing can be installed"):
        put(store, bundle(tmp_path / "one"), name=name)
    assert not store.folder.exists()


def test_a_bundle_with_a_draft_is_whole_in_the_store(store: Store, tmp_path: Path) -> None:
    done = put(store, write_with_draft(tmp_path / "two"))
    assert open_bundle(done.path).draft is not None


def test_files_that_bundles_share_are_one_file(store: Store, tmp_path: Path) -> None:
    first = put(store, bundle(tmp_path / "one", sequence=1))
    second = put(store, bundle(tmp_path / "two", sequence=2))
    assert (first.path / "LICENSE").samefile(second.path / "LICENSE")
    assert not (first.path / "LICENSE").samefile(tmp_path / "one" / "LICENSE")


def test_a_shared_file_that_was_damaged_is_not_taken(store: Store, tmp_path: Path) -> None:
    first = put(store, bundle(tmp_path / "one", sequence=1))
    os.chmod(first.path / "LICENSE", 0o644)
    (first.path / "LICENSE").write_bytes(b"ILL\n")
    second = put(store, bundle(tmp_path / "two", sequence=2))
    assert open_bundle(second.path).read("LICENSE") == b"MIT\n"


def test_one_id_serves_devices_with_different_variants(store: Store, tmp_path: Path) -> None:
    whole = bundle(tmp_path / "one", "fake-q4", "fake-q8")
    assert put(store, whole, "fake-q8").variants == ("fake-q8",)
    assert open_bundle(store.bundle(open_bundle(whole).id)).absent == ("fake-q4",)
    assert put(store, whole, "fake-q4").variants == ("fake-q4", "fake-q8")


def test_a_variant_that_does_not_come_along_is_refused(store: Store, tmp_path: Path) -> None:
    whole = bundle(tmp_path / "one", "fake-q4", "fake-q8")
    (whole / "variants/fake-q8/model.bin").unlink()
    (whole / "variants/fake-q8").rmdir()
    with pytest.raises(BundleDamagedError, match="does not hold the variant 'fake-q8'"):
        put(store, whole, "fake-q8")
    with pytest.raises(UsageError, match="no variant 'nope'"):
        put(store, whole, "nope")


def test_an_update_keeps_the_one_before_and_a_rollback_returns_to_it(store: Store, tmp_path: Path) -> None:
    first, second = put(store, bundle(tmp_path / "1", sequence=1)), put(store, bundle(tmp_path / "2", sequence=2))
    assert second.previous == first.id
    assert rollback(store, "small").id == first.id
    assert rollback(store, "small").id == second.id


def test_a_rollback_works_although_the_newer_one_is_damaged(store: Store, tmp_path: Path) -> None:
    first, second = put(store, bundle(tmp_path / "1", sequence=1)), put(store, bundle(tmp_path / "2", sequence=2))
    (second.path / "manifest.json").unlink()
    assert rollback(store, "small").id == first.id


def test_a_rollback_to_what_is_damaged_is_refused(store: Store, tmp_path: Path) -> None:
    first = put(store, bundle(tmp_path / "1", sequence=1))
    second = put(store, bundle(tmp_path / "2", sequence=2, payload=b"others!"))
    os.chmod(first.path / "variants/fake-q4/model.bin", 0o644)
    (first.path / "variants/fake-q4/model.bin").write_bytes(b"WEIGHTS")
    with pytest.raises(BundleDamagedError, match=r"variants/fake-q4/model\.bin"):
        rollback(store, "small")
    assert find("small", [store.folder]) == second.path


def test_a_downgrade_is_refused_unless_it_is_meant(store: Store, tmp_path: Path) -> None:
    first, second = bundle(tmp_path / "1", sequence=1), bundle(tmp_path / "2", sequence=2)
    put(store, second)
    with pytest.raises(TrustError, match="has been at sequence 2 here, and this bundle is 1"):
        put(store, first)
    put(store, first, allow_downgrade=True)
    with pytest.raises(TrustError, match="downgrade"):  # what was reached is not forgotten
        put(store, bundle(tmp_path / "again", sequence=1, payload=b"others!"))


def test_what_is_not_admitted_leaves_no_trace(store: Store, tmp_path: Path) -> None:
    def refuse(contents: object, signature: bytes | None) -> None:
        raise TrustError("no")

    with pytest.raises(TrustError):
        install(store, Folder(bundle(tmp_path / "one")), admit=refuse)
    assert not store.folder.exists()


def test_a_bundle_that_fails_its_check_is_not_used(store: Store, tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        assert open_bundle(folder).id
        raise EngineError("it says something else here")

    first = put(store, bundle(tmp_path / "1", sequence=1))
    with pytest.raises(EngineError):
        install(store, Folder(bundle(tmp_path / "2", sequence=2)), check=fail)
    assert find("small", [store.folder]) == first.path


def test_a_damaged_bundle_is_made_whole_by_the_same_again(store: Store, tmp_path: Path) -> None:
    made = bundle(tmp_path / "one")
    done = put(store, made)
    os.chmod(done.path / "variants/fake-q4/model.bin", 0o644)
    (done.path / "variants/fake-q4/model.bin").write_bytes(b"WEIGHTS")
    (done.path / "stranger").write_bytes(b"")
    open_bundle(put(store, made).path)


class Cut(Folder):
    """A source that ends in the middle of each file, and counts where it was asked to begin."""

    begins: list[int]

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        self.begins.append(begin)
        for block in super().blocks(name, file, begin):
            yield block[:3]
            raise BundleNotFoundError("the line was cut")


def test_what_came_in_before_the_line_was_cut_is_not_fetched_again(store: Store, tmp_path: Path) -> None:
    made = bundle(tmp_path / "one")
    cut = Cut(made)
    cut.begins = []
    for _ in range(3):
        with pytest.raises(BundleNotFoundError):
            install(store, cut)
    assert cut.begins == [0, 3, 0]  # of the licence's four bytes; then of the next file
    open_bundle(put(store, made).path)


def test_a_manifest_that_reads_well_and_is_another_is_made_whole(store: Store, tmp_path: Path) -> None:
    done = put(store, bundle(tmp_path / "one"))
    manifest = done.path / "manifest.json"
    os.chmod(manifest, 0o644)
    manifest.write_bytes(manifest.read_bytes() + b"\n")
    assert open_bundle(put(store, tmp_path / "one").path, id=done.id).id == done.id


def test_what_an_earlier_try_left_damaged_is_fetched_anew(store: Store, tmp_path: Path) -> None:
    made = bundle(tmp_path / "one")
    cut = Cut(made)
    cut.begins = []
    with pytest.raises(BundleNotFoundError):
        install(store, cut)
    (part,) = (store.staging / open_bundle(made).id / "partial").iterdir()
    part.write_bytes(b"XYZ")
    open_bundle(put(store, made).path)


def test_what_another_try_left_of_other_variants_does_no_harm(store: Store, tmp_path: Path) -> None:
    made = bundle(tmp_path / "one", "fake-q4", "fake-q8")
    left = store.staging / open_bundle(made).id / "tree" / "variants" / "fake-q8"
    left.mkdir(parents=True)
    (left / "model.bin").write_bytes(b"wei")
    assert put(store, made, "fake-q4").variants == ("fake-q4",)


def test_gc_frees_what_no_name_stands_for(store: Store, tmp_path: Path) -> None:
    for sequence in (1, 2, 3):
        put(store, bundle(tmp_path / str(sequence), sequence=sequence, payload=bytes([sequence]) * 7))
    assert len(store.bundles()) == 3
    assert gc(store) > 0
    assert len(store.bundles()) == 2
    gc(store, previous=True)
    (left,) = store.bundles()
    open_bundle(store.bundle(left))


def test_gc_frees_nothing_while_a_reference_cannot_be_read(store: Store, tmp_path: Path) -> None:
    put(store, bundle(tmp_path / "one"))
    (store.folder / "names" / "small.json").write_bytes(b"{")
    with pytest.raises(BundleDamagedError, match="no reference"):
        gc(store)
    assert len(store.bundles()) == 1


def test_a_name_is_removed_with_what_it_alone_stands_for(store: Store, tmp_path: Path) -> None:
    made = bundle(tmp_path / "one")
    put(store, made)
    put(store, made, name="other")
    assert remove(store, "small") == 0
    assert len(store.bundles()) == 1
    assert remove(store, "other") > 0
    assert store.bundles() == []
    with pytest.raises(BundleNotFoundError, match="not installed"):
        remove(store, "other")


def test_who_looks_in_the_wrong_store_is_told_which_is_right(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(store, bundle(tmp_path / "one"))
    monkeypatch.setenv(STORE, str(store.folder))
    with pytest.raises(BundleNotFoundError, match=f"It is in {store.folder}: name that with --store"):
        rollback(Store(tmp_path / "other"), "small")


def test_a_name_may_be_given_another_installed_bundle(store: Store, tmp_path: Path) -> None:
    first, second = put(store, bundle(tmp_path / "1", sequence=1)), put(store, bundle(tmp_path / "2", sequence=2))
    with pytest.raises(TrustError, match="downgrade"):
        use(store, "small", first.id[:12])
    assert use(store, "small", first.id[:12], allow_downgrade=True).before == second.id
    with pytest.raises(BundleNotFoundError, match="holds no bundle"):
        use(store, "small", "ffff")


def test_a_part_keeps_the_proof_and_says_whose_it_is(tmp_path: Path) -> None:
    whole = bundle(tmp_path / "one", "fake-q4", "fake-q8")
    for id in ("fake-q4", "fake-q8"):
        (whole / "evidence").mkdir(exist_ok=True)
        add(whole, f"evidence/{id}.json", b"{}")
    add(whole, "receipt.json", receipt({"fake-q4": 0.1, "fake-q8": 0.01}))
    part = split(whole, ["fake-q8"], tmp_path / "part")
    assert part.manifest.parent == open_bundle(whole).id
    assert [each.id for each in part.manifest.variants] == ["fake-q8"]
    assert [file.path for file in part.manifest.files if "evidence" in file.path] == ["evidence/fake-q8.json"]
    open_bundle(part.path)


def test_a_store_that_cannot_be_written_is_an_error_with_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"The install failed: .*file"):
        put(Store(tmp_path / "file" / "store"), bundle(tmp_path / "one"))


class Huge(Folder):
    """A bundle whose manifest says that it has more than any disk holds."""

    def contents(self) -> Contents:
        inside = super().contents()
        (each,) = inside.manifest.variants
        (file,) = each.files
        large = msgspec.structs.replace(each, files=[msgspec.structs.replace(file, size=1 << 50)])
        return replace(inside, manifest=msgspec.structs.replace(inside.manifest, variants=[large]))


def test_what_a_disk_has_no_room_for_is_refused_before_it_comes_in(store: Store, tmp_path: Path) -> None:
    huge = Huge(bundle(tmp_path / "one"))
    with pytest.raises(StoreError, match=r"What comes in has 1048576\.0 GiB"):
        install(store, huge)
    with pytest.raises(StoreError, match=r"What comes in has .* and the disk of"):
        write_bundle(huge, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _race(store: Store, folders: list[Path], failed: multiprocessing.Queue[str]) -> None:
    try:
        for folder in folders:
            put(store, folder)
    except Exception as error:
        failed.put(repr(error))


def test_installers_at_once_leave_a_whole_store(store: Store, tmp_path: Path) -> None:
    folders = [bundle(tmp_path / str(n), payload=bytes([n]) * 7) for n in range(5)]
    spawn = multiprocessing.get_context("fork")
    failed: multiprocessing.Queue[str] = spawn.Queue()
    racers = [spawn.Process(target=_race, args=(store, order, failed)) for order in (folders, folders[::-1])]
    for each in racers:
        each.start()
    for each in racers:
        each.join()
    assert failed.empty(), failed.get()
    for id in store.bundles():
        open_bundle(store.bundle(id))
    assert find("small", [store.folder]) is not None
