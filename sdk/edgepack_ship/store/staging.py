"""What comes into a store: file by file into a folder that no reader looks at, taken up where it was interrupted."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from io import FileIO
from itertools import chain
from pathlib import Path

from edgepack.bundle.files import MAX_MANIFEST, Progress
from edgepack.bundle.manifest import File
from edgepack.bundle.work import flush
from edgepack.errors import BundleDamagedError, BundleError
from edgepack_ship.contents import contents
from edgepack_ship.incoming import Incoming
from edgepack_ship.reading import blocks_of, bytes_of
from edgepack_ship.store.place import Store
from edgepack_ship.writing import checked, refuse_without_room, write_file

Known = Callable[[File], Sequence[Path]]
"""Returns files of the store that should have these bytes."""


def known_files(store: Store) -> Known:
    """Return what finds a file of the store by its digest, among all bundles that are there."""
    places: dict[tuple[str, int], list[Path]] = {}
    for id in store.bundles():
        folder = store.bundle(id)
        with suppress(BundleError):
            for name, file in contents(lambda each: bytes_of(folder / each, MAX_MANIFEST)).files().items():  # noqa: B023
                places.setdefault((file.sha256, file.size), []).append(folder / name)
    return lambda file: places.get((file.sha256, file.size), ())


def receive(
    incoming: Incoming, files: Mapping[str, File], folder: Path, known: Known, progress: Progress | None = None
) -> None:
    """Put files of a bundle into the folder ``tree`` below ``folder``, each with the bytes that its manifest says.

    A file that is there from an earlier try, or that the store has in another bundle, is read and taken if it is right;
    any other comes from ``incoming``, from the byte on at which that ended before. What else an earlier try left goes.
    All files are on the disk when this returns, their folders are not. Raises ``BundleError`` and ``OSError``.
    """
    tree, partial = folder / "tree", folder / "partial"
    _prune(tree, files)
    partial.mkdir(parents=True, exist_ok=True)
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    refuse_without_room(folder, sum(file.size for file in files.values() if not known(file)) - there)
    for name, file in files.items():
        place = tree / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if _there(place, name, file, progress) or _linked(known(file), place, name, file, progress):
            continue
        part = partial / file.sha256
        again = part.is_file() and part.stat().st_size > 0
        try:
            _append(part, incoming, name, file, progress)
        except BundleDamagedError:  # by whom? what an earlier try left is not worth more than the question
            part.unlink()
            if not again:
                raise
            _append(part, incoming, name, file, progress)
        os.rename(part, place)


def settle(tree: Path) -> None:
    """Flush every folder below ``tree``, the deepest first, and itself. Raises ``OSError``."""
    for path, _, _ in os.walk(tree, topdown=False):
        flush(Path(path))


def _prune(tree: Path, files: Mapping[str, File]) -> None:
    """Delete every file below ``tree`` that is not one of these, and every folder that is empty then."""
    for path, folders, names in os.walk(tree, topdown=False):
        for name in names:
            if (Path(path) / name).relative_to(tree).as_posix() not in files:
                os.unlink(os.path.join(path, name))
        for name in folders:
            with suppress(OSError):  # it is not empty
                os.rmdir(os.path.join(path, name))


def _there(place: Path, name: str, file: File, progress: Progress | None) -> bool:
    """Say whether an earlier try left the file, which may not have been on the disk; take away what is not it."""
    if not os.path.lexists(place):
        return False
    try:
        for _ in checked(blocks_of(place), name, file, progress):
            pass
    except BundleError:
        place.unlink()
        return False
    flush(place)
    return True


def _linked(places: Sequence[Path], place: Path, name: str, file: File, progress: Progress | None) -> bool:
    """Link a file of the store that has the same bytes, or copy it where the file system has no links."""
    for known in places:
        try:
            for _ in checked(blocks_of(known), name, file):
                pass
        except BundleError:  # it was damaged, or has just gone
            continue
        try:
            os.link(known, place, follow_symlinks=False)
        except OSError:
            write_file(place, checked(blocks_of(known), name, file))
            flush(place)
        if progress is not None:
            progress(name, file.size)
        return True
    return False


def _append(part: Path, incoming: Incoming, name: str, file: File, progress: Progress | None) -> None:
    """Go on with a file where it ended, and compare the whole. What was written stays when the source fails."""
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(part, flags, 0o666), "r+b", buffering=0) as out:
        begin = os.fstat(out.fileno()).st_size
        rest = incoming.blocks(name, file, begin) if begin < file.size or begin == 0 else iter(())
        for _ in checked(chain(blocks_of(part), _written(rest, out, begin)), name, file, progress):
            pass
        os.fchmod(out.fileno(), stat.S_IMODE(os.fstat(out.fileno()).st_mode) & ~0o222)
        os.fsync(out.fileno())


def _written(blocks: Iterator[bytes], out: FileIO, begin: int) -> Iterator[bytes]:
    """Write blocks from a place of a file on, as they pass."""
    out.seek(begin)
    for block in blocks:
        rest = memoryview(block)
        while rest:
            rest = rest[out.write(rest) :]
        yield block
