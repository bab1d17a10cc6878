"""A bundle that comes in is written to a folder: checked while it is written, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from secrets import token_hex

from edgepack.bundle import work
from edgepack.bundle.files import SIGNATURE, Bundle, Progress, open_bundle
from edgepack.bundle.manifest import File
from edgepack.bundle.work import flush
from edgepack.device.memory import human
from edgepack.errors import BundleDamagedError, StoreError
from edgepack_ship.incoming import Incoming


def write_bundle(
    incoming: Incoming,
    out: Path,
    variants: Iterable[str] | None = None,
    *,
    force: bool = False,
    what: str = "The copy",
    progress: Progress | None = None,
) -> Bundle:
    """Write a bundle, or the named ones of its variants, to a new folder and return it opened.

    Size and sha256 of each file are compared while it is written, the manifest comes last, and the folder has its name
    when all of it is on the disk. ``what`` begins the sentence of what the system refuses, ``progress`` gets each
    block's file and length in bytes. Raises ``BundleError``, ``UsageError`` for a variant that is not there,
    ``OutputExistsError`` unless ``force`` replaces a bundle, and ``BuildError``.
    """
    inside = incoming.contents()
    held = incoming.variants()
    chosen = inside.chosen(held if variants is None else variants)
    refuse_missing(incoming, chosen, held)
    files = inside.files(chosen)
    with work.folder(out, force, what) as scratch:
        refuse_without_room(scratch, sum(file.size for file in files.values()))
        bundle = scratch / "bundle"
        for name, file in files.items():
            write_file(bundle / name, checked(incoming.blocks(name, file), name, file, progress))
        if (signature := incoming.signature()) is not None:
            write_file(bundle / SIGNATURE, [signature])
        for name, data in inside.manifests().items():
            write_file(bundle / name, [data])
        open_bundle(bundle, verify="sizes")
        work.publish(bundle, out, force)
    return open_bundle(out, verify="sizes")


def refuse_missing(incoming: Incoming, chosen: Iterable[str], held: Iterable[str]) -> None:
    """Raise ``BundleDamagedError`` where a chosen variant is not in what comes in."""
    here = set(held)
    if left_out := [id for id in chosen if id not in here]:
        raise BundleDamagedError(
            f"{incoming.place} does not hold the variant {left_out[0]!r}.",
            hint="Get it from where the whole bundle is.",
        )


def refuse_without_room(folder: Path, size: int) -> None:
    """Raise ``StoreError`` where a disk has no room for so many bytes, before any of them comes in."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise StoreError(
            f"What comes in has {human(size)}, and the disk of {folder.parent} has {human(free)} free.",
            hint="Free some space, or leave variants out with --variant.",
        )


def write_file(path: Path, blocks: Iterable[bytes]) -> None:
    """Write a file that is not there yet, and the folders above it. Raises ``OSError`` and what ``blocks`` raises."""
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    with open(os.open(path, flags, 0o666), "wb", buffering=0) as file:
        for block in blocks:
            rest = memoryview(block)
            while rest:
                rest = rest[file.write(rest) :]


def replace_file(path: Path, data: bytes) -> None:
    """Write a file in the place of another, in one step, which is on the disk when this returns. Raises ``OSError``."""
    # Readers of bundles pass over such a name, so that what a crash leaves is not a file too many.
    beside = path.with_name(f"._{path.name}.{token_hex(8)}")
    try:
        write_file(beside, [data])
        flush(beside)
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    flush(path.parent)


def checked(blocks: Iterable[bytes], name: str, file: File, progress: Progress | None = None) -> Iterator[bytes]:
    """Yield the blocks of a file. Raises ``BundleDamagedError`` where its size or its sha256 is not the manifest's."""
    digest, count = hashlib.sha256(), 0
    for block in blocks:
        digest.update(block)
        count += len(block)
        if count > file.size:
            raise _damaged(name, f"it has more than {file.size:,} bytes")
        if progress is not None:
            progress(name, len(block))
        yield block
    if count != file.size:
        raise _damaged(name, f"it has {count:,} bytes where the manifest says {file.size:,}")
    if digest.hexdigest() != file.sha256:
        raise _damaged(name, "its sha256 differs from the manifest's")


def _damaged(name: str, what: str) -> BundleDamagedError:
    return BundleDamagedError(f"{name} of the bundle is damaged: {what}.", hint="Get the bundle again.")
