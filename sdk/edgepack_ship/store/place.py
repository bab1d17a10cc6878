"""Where a store is, who may write to it, and what its names stand for."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from edgepack.bundle import installed
from edgepack.bundle.installed import BUNDLES, NAME, NAMES, Reference
from edgepack.bundle.work import flush
from edgepack.errors import BundleNotFoundError, EdgepackError, StoreError, UsageError
from edgepack_ship.writing import replace_file

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


@dataclass(frozen=True, slots=True)
class Store:
    """A store by its folder, which need not be there yet."""

    folder: Path

    @property
    def staging(self) -> Path:
        """The folder of what comes in and of what is going away."""
        return self.folder / "staging"

    def bundle(self, id: str) -> Path:
        """Return the folder of the bundle of that id, whether it is there or not."""
        return self.folder / BUNDLES / id

    def present(self, id: str) -> Path | None:
        """Return the folder of the bundle of that id, None where it is not there."""
        path = self.bundle(id)
        return path if path.is_dir() else None

    def bundles(self) -> list[str]:
        """Return the ids of all bundles that are there, sorted."""
        with suppress(FileNotFoundError, NotADirectoryError):
            return sorted(name for name in os.listdir(self.folder / BUNDLES))
        return []

    def names(self) -> dict[str, Reference]:
        """Return what each name stands for, sorted by name. Raises ``BundleError`` for a reference that is damaged."""
        found: dict[str, Reference] = {}
        with suppress(FileNotFoundError, NotADirectoryError):
            for file in sorted(os.listdir(self.folder / NAMES)):
                name = file.removesuffix(".json")
                if name != file and NAME.fullmatch(name) and (reference := installed.read(self.folder, name)):
                    found[name] = reference
        return found

    def reference(self, name: str) -> Reference:
        """Return what a name stands for. Raises ``UsageError``, and ``BundleNotFoundError`` where it is unknown."""
        found = installed.read(self.folder, plain(name))
        if found is None:
            known = ", ".join(self.names()) or "nothing"
            there = installed.find(name)
            elsewhere = f"It is in {there.parent.parent}: name that with --store." if there else None
            raise BundleNotFoundError(
                f"{name} is not installed in {self.folder}.", hint=elsewhere or f"Installed: {known}."
            )
        return found

    def point(self, name: str, reference: Reference) -> None:
        """Let a name stand for a bundle, in one step, which is on the disk when this returns. Raises ``OSError``."""
        place = self.folder / NAMES / f"{name}.json"
        replace_file(place, msgspec.json.format(msgspec.json.encode(reference), indent=2) + b"\n")

    @contextmanager
    def writing(self, what: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep the store to this process for the block, and make its folders first.

        ``waiting`` is called where another process has it. Raises ``StoreError`` for whatever the system refuses in the
        block: ``what``, as in "The install", failed.
        """
        with refusals(self.folder, what):
            for folder in (self.folder, *(self.folder / each for each in (NAMES, BUNDLES)), self.staging):
                _make(folder)
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
            try:
                _take(descriptor, waiting)
                yield
            finally:
                os.close(descriptor)


def default() -> Store:
    """Return the store that this user writes to: the first of ``EDGEPACK_STORE``, root's is the system's."""
    named = os.environ.get(installed.STORE)
    if not named and hasattr(os, "geteuid") and os.geteuid() == 0:
        return Store(installed.system_store())
    return Store(installed.stores()[0])


def plain(name: str) -> str:
    """Return a name that a bundle can be installed as. Raises ``UsageError`` for any other text."""
    if not NAME.fullmatch(name):
        raise UsageError(
            f"Nothing can be installed as {name!r}.",
            hint="A name has letters, digits and _ . + -, and does not begin with a dot; give one with --name.",
        )
    return name


@contextmanager
def refusals(folder: Path, what: str) -> Iterator[None]:
    """Turn whatever the system refuses in the block into a ``StoreError``: ``what`` failed."""
    try:
        yield
    except OSError as error:
        if isinstance(error, EdgepackError):
            raise
        place = f"{error.filename}: " if error.filename else ""
        if error.errno in _FULL:
            hint = "Free some space, as edgepack gc does, and repeat it: what came in already is kept."
        elif error.errno in _REFUSED:
            hint = f"Repeat it as the user to whom {folder} belongs, or name another store with --store."
        else:
            hint = "What was installed is there as before; the system's log may say what is wrong with the disk."
        raise StoreError(f"{what} failed: {place}{error.strerror}.", hint=hint) from None


def _make(folder: Path) -> None:
    if not folder.is_dir():
        _make(folder.parent)
        folder.mkdir(exist_ok=True)
        flush(folder.parent)


def _take(descriptor: int, waiting: Callable[[], None]) -> None:
    if sys.platform == "win32":
        return
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)
