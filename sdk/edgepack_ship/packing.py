"""A bundle is packed into one file: compared with its manifest while it is read, whole or not at all.

The same bundle and variants give the same bytes, whoever packs them and when.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from edgepack.bundle import work
from edgepack.bundle.files import MANIFEST, SIGNATURE, Progress
from edgepack.errors import OutputExistsError
from edgepack_ship.archive import headers
from edgepack_ship.archive.packed import Archive
from edgepack_ship.incoming import Incoming
from edgepack_ship.writing import checked, refuse_missing, write_file


@dataclass(frozen=True, slots=True)
class Packed:
    """A packed bundle: the file and its size in bytes, and the id of the bundle in it.

    ``variants`` are the ids of those that are in it, ``absent`` of those that its manifest lists besides.
    """

    path: Path
    size: int
    id: str
    variants: tuple[str, ...]
    absent: tuple[str, ...]


def pack(
    incoming: Incoming,
    out: Path,
    variants: Iterable[str] | None = None,
    *,
    force: bool = False,
    progress: Progress | None = None,
) -> Packed:
    """Write a bundle, or the named ones of its variants, to one file.

    The size and the sha256 of each file are compared while it is packed, and ``progress`` gets each block's file and
    length in bytes. Raises ``BundleError``, ``UsageError`` for a variant that is not there, ``OutputExistsError``
    unless ``force`` replaces a packed bundle, and ``BuildError`` for what the system refuses.
    """
    inside, held = incoming.contents(), incoming.variants()
    chosen = inside.chosen(held if variants is None else variants)
    refuse_missing(incoming, chosen, held)
    if out.is_dir():
        raise OutputExistsError(f"{out} is a folder, and a packed bundle is a file.", hint="Choose another --out.")
    with work.folder(out, force, "The packing") as scratch:
        packed = scratch / "packed"
        write_file(packed, _tar(_members(incoming, chosen, progress)))
        Archive(packed).close()  # whoever gets it can open it
        work.publish(packed, out, force)
        size = out.stat().st_size
    return Packed(out, size, inside.id, chosen, tuple(id for id in inside.variants if id not in chosen))


_Member = tuple[str, int, Iterable[bytes]]


def _members(incoming: Incoming, variants: Iterable[str], progress: Progress | None) -> Iterator[_Member]:
    """Yield the path, the size and the bytes of each member: the manifest, who vouches for it, and what it lists."""
    inside, signature = incoming.contents(), incoming.signature()
    whole = {MANIFEST: inside.data} | ({} if signature is None else {SIGNATURE: signature}) | inside.manifests()
    for name, data in whole.items():
        yield name, len(data), [data]
    for name, file in inside.files(variants).items():
        yield name, file.size, checked(incoming.blocks(name, file), name, file, progress)


def _tar(members: Iterable[_Member]) -> Iterator[bytes]:
    at = 0
    for name, size, blocks in members:
        header, filling = headers.encoded(name, size, at), headers.filling(size)
        yield header
        yield from blocks
        yield filling
        at += len(header) + size + len(filling)
    yield headers.END
