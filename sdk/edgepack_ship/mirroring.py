"""Bundles are laid out in a folder that any web server serves, and that may be served while it grows.

Files come first, each under its digest, and the index last: whoever reads it finds all that it names.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from secrets import token_hex

from edgepack.bundle import work
from edgepack.bundle.files import Progress
from edgepack_ship.contents import Contents
from edgepack_ship.incoming import Incoming
from edgepack_ship.reading import bytes_of
from edgepack_ship.registry import index
from edgepack_ship.registry.index import INDEX, MAX_INDEX, Index, Listed, object_path
from edgepack_ship.writing import checked, write_file


@dataclass(frozen=True, slots=True)
class Mirror:
    """A folder of bundles, those that were added, and how many bytes were written for them."""

    path: Path
    added: tuple[Listed, ...]
    written: int


def mirror(bundles: Sequence[Incoming], out: Path, progress: Progress | None = None) -> Mirror:
    """Add bundles to a folder, which is made where there is none; one that is there already is listed anew.

    ``progress`` gets each block's file and length in bytes. Raises ``BundleError`` for a bundle that differs from its
    manifest and for a folder with an index that is none, ``BuildError`` where the system refuses.
    """
    with work.refusals(out, "The mirror"):
        _index(out)  # before hours of writing
        added, written = [], 0
        for each in bundles:
            entry, count = _add(each, out, progress)
            added.append(entry)
            written += count
        _write(out / INDEX, [index.encode(_index(out).adding(added))])
    return Mirror(out, tuple(added), written)


def _add(incoming: Incoming, out: Path, progress: Progress | None) -> tuple[Listed, int]:
    inside, variants, signature = incoming.contents(), incoming.variants(), incoming.signature()
    written = 0
    for name, file in inside.files(variants).items():
        place = out / object_path(file.sha256)
        if _there(place, file.size):
            if progress is not None:
                progress(name, file.size)
            continue
        _write(place, checked(incoming.blocks(name, file), name, file, progress))
        written += file.size
    for data in [*inside.manifests().values(), *([] if signature is None else [signature])]:
        place = out / object_path(sha256(data).hexdigest())
        if not _there(place, len(data)):
            _write(place, [data])
            written += len(data)
    return _listed(inside, variants, signature), written


def _listed(inside: Contents, variants: Sequence[str], signature: bytes | None) -> Listed:
    return Listed(
        name=inside.manifest.name,
        version=inside.manifest.version,
        id=inside.id,
        variants=list(variants),
        sequence=inside.manifest.sequence,
        draft=None if inside.draft is None else inside.draft.id,
        signature=None if signature is None else sha256(signature).hexdigest(),
    )


def _there(place: Path, size: int) -> bool:
    """Say whether a file is there: it has its name since all of it is on the disk."""
    try:
        return os.lstat(place).st_size == size
    except FileNotFoundError:
        return False


def _index(out: Path) -> Index:
    if not os.path.lexists(out / INDEX):
        return index.EMPTY
    return index.decode(bytes_of(out / INDEX, MAX_INDEX), str(out / INDEX))


def _write(place: Path, blocks: Iterable[bytes]) -> None:
    """Write a file beside its place, and give it its name when all of it is on the disk."""
    growing = place.with_name(f".{place.name}.{token_hex(8)}.partial")
    try:
        write_file(growing, blocks)
        _flush(growing)
        os.replace(growing, place)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(growing)
    _flush(place.parent)


def _flush(place: Path) -> None:
    if place.is_dir() and not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    descriptor = os.open(place, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
