"""A store asks the policies before anything comes in, and before a name stands for something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import signing
import small_bundle

from edgepack.bundle import installed
from edgepack.cli import main
from edgepack.errors import TrustError
from edgepack_ship.incoming import Folder
from edgepack_ship.store import names
from edgepack_ship.store.install import install
from edgepack_ship.store.place import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    made = Store(tmp_path / "store")
    made.folder.mkdir()
    return made


def bundle(folder: Path, sequence: int = 7) -> Path:
    return small_bundle.write(folder, **signing.manifest(sequence=sequence))


def test_the_policy_of_a_store_is_asked_without_being_named(store: Store, tmp_path: Path) -> None:
    signing.policy(store.folder / "policy.toml", "ours")
    first = bundle(tmp_path / "first")
    for name in (None, "theirs"):
        with pytest.raises(TrustError, match=r"store/policy\.toml"):
            install(store, Folder(signing.sign(first, name) if name else first))
        assert [each.name for each in store.folder.iterdir()] == ["policy.toml"]
    done = install(store, Folder(signing.sign(first)))
    assert installed.find("small", [store.folder]) == done.path


def test_no_name_stands_again_for_what_a_policy_refuses_by_now(store: Store, tmp_path: Path) -> None:
    first = install(store, Folder(signing.sign(bundle(tmp_path / "first"))))
    second = install(store, Folder(signing.sign(bundle(tmp_path / "second", 8))))
    signing.policy(store.folder / "policy.toml", "ours", rules='minimum_sequence = { "*" = 8 }')
    for change in (
        lambda: names.rollback(store, "small"),
        lambda: names.use(store, "small", first.id, allow_downgrade=True),
    ):
        with pytest.raises(TrustError, match="its sequence is 7, and 8 is the lowest"):
            change()
    assert installed.find("small", [store.folder]) == second.path
    (store.folder / "policy.toml").unlink()
    assert names.rollback(store, "small").id == first.id


def test_the_commands_take_a_policy(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGEPACK_STORE", str(store.folder))
    first, second = (signing.sign(bundle(tmp_path / str(n), n)) for n in (1, 2))
    ours, theirs = (str(signing.policy(tmp_path / f"{name}.toml", name)) for name in ("ours", "theirs"))
    assert main(["install", str(first), "--policy", theirs]) == 1
    assert "None of the keys" in capsys.readouterr().err
    for each in (first, second):
        assert main(["install", str(each), "--policy", ours]) == 0
    assert main(["rollback", "small", "--policy", theirs]) == 1
    assert main(["verify", "small", "--policy", ours]) == 0
    assert "signed by ours" in capsys.readouterr().out
