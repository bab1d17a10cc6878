"""What names stand for is changed: to another installed bundle, back to the one before, to nothing; and what no name
stands for goes."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgepack.bundle.files import MAX_MANIFEST, open_bundle
from edgepack.bundle.installed import BUNDLES, NAMES, Reference
from edgepack.bundle.work import flush
from edgepack.errors import BundleNotFoundError, UsageError
from edgepack.trust.admitting import gate
from edgepack_ship.contents import Contents, contents
from edgepack_ship.incoming import signature_of
from edgepack_ship.reading import bytes_of
from edgepack_ship.store.install import Admit, following, point, refuse_downgrade
from edgepack_ship.store.place import Store


@dataclass(frozen=True, slots=True)
class Changed:
    """What a name stands for now, and what it stood for."""

    name: str
    id: str
    before: str


def use(
    store: Store,
    name: str,
    id: str,
    *,
    admit: Admit | None = None,
    allow_downgrade: bool = False,
    waiting: Callable[[], None] = lambda: None,
) -> Changed:
    """Let a name stand for another bundle of the store, named by its id or the beginning of one.

    All its bytes are compared first. Raises ``BundleNotFoundError``, ``UsageError`` for the beginning of several, and
    as ``install``.
    """
    with store.writing("The change", waiting):
        before = store.reference(name)
        found = _found(store, id)
        inside = _sound(store, found, admit)
        refuse_downgrade(name, inside, before, allow_downgrade)
        _point(store, name, before, following(before, inside))
    return Changed(name, found, before.current)


def rollback(
    store: Store,
    name: str,
    *,
    admit: Admit | None = None,
    waiting: Callable[[], None] = lambda: None,
) -> Changed:
    """Let a name stand for the bundle before, whatever state the present one is in; a second one undoes the first.

    All bytes of the bundle before are compared first. Raises ``BundleNotFoundError`` where there is none, and as
    ``install``.
    """
    with store.writing("The rollback", waiting):
        before = store.reference(name)
        if before.previous is None:
            raise BundleNotFoundError(
                f"{name} has stood for one bundle only: there is none to go back to.",
                hint="edgepack list shows what is installed.",
            )
        _sound(store, before.previous, admit)
        _point(store, name, before, Reference(before.previous, before.current, before.highest))
    return Changed(name, before.previous, before.current)


def remove(store: Store, name: str, *, waiting: Callable[[], None] = lambda: None) -> int:
    """Take a name away, and the bundles that it alone stood for; return the bytes that are free now.

    Raises ``BundleNotFoundError``, ``UsageError`` and ``StoreError``.
    """
    with store.writing("The removal", waiting):
        gone = store.reference(name)
        os.unlink(store.folder / NAMES / f"{name}.json")
        flush(store.folder / NAMES)
        return _swept(store, {gone.current, gone.previous})


def gc(store: Store, *, previous: bool = False, waiting: Callable[[], None] = lambda: None) -> int:
    """Take away what no name stands for and what interrupted installs left; return the bytes that are free.

    With ``previous`` the bundles go as well to which ``rollback`` would return. Nothing goes while a reference cannot
    be read, which may name it. Raises ``BundleError``.
    """
    with store.writing("The clean-up", waiting):
        for name, reference in store.names().items():
            if previous and reference.previous is not None:
                store.point(name, Reference(reference.current, None, reference.highest))
        freed = 0
        for left in sorted(os.listdir(store.staging)):
            freed += _deleted(store.staging / left)
        for left in os.listdir(store.folder / NAMES):
            if left.startswith("."):  # of a name that was being written
                os.unlink(store.folder / NAMES / left)
        return freed + _swept(store, set(store.bundles()))


def _found(store: Store, id: str) -> str:
    begins = id.removeprefix("sha256:")
    found = [each for each in store.bundles() if each.startswith(begins)] if begins else []
    if len(found) > 1:
        raise UsageError(f"{len(found)} bundles of {store.folder} begin with {id}.", hint="Give more of its digits.")
    if not found:
        raise BundleNotFoundError(f"{store.folder} holds no bundle {id}.", hint="edgepack list --all shows the ids.")
    return found[0]


def _sound(store: Store, id: str, admit: Admit | None) -> Contents:
    """Return the contents of a bundle of the store whose bytes are right, and which is admitted."""
    path = store.bundle(id)
    open_bundle(path, id=id)
    inside = contents(lambda name: bytes_of(path / name, MAX_MANIFEST))
    (admit or gate(store=store.folder))(inside, signature_of(path))
    return inside


def _point(store: Store, name: str, before: Reference, after: Reference) -> None:
    if after != before:
        point(store, name, after)


def _swept(store: Store, ids: set[str | None]) -> int:
    """Take away those of the bundles for which no name stands, and return the bytes that are free."""
    names = store.names().values()
    used = {reference.current for reference in names} | {reference.previous for reference in names}
    freed = 0
    for id in sorted(id for id in ids if id is not None and id not in used and os.path.lexists(store.bundle(id))):
        going = store.staging / f"{id}.gone"
        with suppress(FileNotFoundError):
            shutil.rmtree(going)
        os.rename(store.bundle(id), going)
        flush(store.folder / BUNDLES)
        freed += _deleted(going)
    return freed


def _deleted(path: Path) -> int:
    """Delete a file or a folder and return the bytes of the files that no other bundle shares."""
    freed = 0
    for folder, _, files in os.walk(path):
        for file in files:
            found = os.lstat(os.path.join(folder, file))
            freed += found.st_size if found.st_nlink == 1 else 0
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
    return freed
