"""A difference on its way in: a bundle whose bytes are partly those of one that is installed."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from edgepack.bundle.files import DRAFT, MANIFEST, MAX_MANIFEST, MAX_SIGNATURE, SIGNATURE, Bundle, open_bundle
from edgepack.bundle.manifest import File
from edgepack.errors import BundleDamagedError, BundleError
from edgepack_ship.contents import Contents, contents
from edgepack_ship.delta import format
from edgepack_ship.delta.format import HEADER, LITERAL, MAGIC, Made, damaged
from edgepack_ship.reading import blocks_of, opened_regular, span

Held = dict[str, tuple[Path, int]]
"""Files of a bundle that are here, with their sizes, by their sha256."""


def recognised(path: Path) -> bool:
    """Say whether a file begins as a difference does. Raises ``BundleError`` where it cannot be read."""
    return next(blocks_of(path), b"").startswith(MAGIC)


class Difference:
    """A bundle that is made of an installed one and of what a file says has changed.

    ``bases`` returns the folder of an installed bundle by its id. It holds the index and blocks of 1 MiB. Raises
    ``BundleError`` where the base is not installed, and ``BundleDamagedError`` for a file that is no difference or does
    not fit its base.
    """

    def __init__(self, path: Path, bases: Callable[[str], Path | None]) -> None:
        self.place = str(path)
        with ExitStack() as stack:
            self._file = stack.enter_context(opened_regular(path))
            size = os.fstat(self._file).st_size
            begin, length = format.header(self._read(0, min(HEADER.size, size)), size, self.place)
            self._index = format.index(self._read(begin, length), begin - HEADER.size, self.place)
            base = self._index.base
            if (folder := bases(base)) is None:
                raise BundleError(
                    f"{path} was made for sha256:{base}, which is not installed here.",
                    hint="Install that bundle first, or the whole of the new one.",
                )
            self._held = held(self._opened_base(folder))
            self._made = {made.sha256: made for made in self._index.made}
            self._begins = self._literals_of_each()
            sizes = np.array([self._held.get(each, (path, -1))[1] for each in self._index.sources], np.int64)
            self._lacking = {made.sha256 for made in self._index.made if not format.fits(made, sizes, self.place)}
            self._contents = contents(self._manifest)
            self._open = stack.pop_all()

    def contents(self) -> Contents:
        return self._contents

    def signature(self) -> bytes | None:
        digest = self._index.signature
        return None if digest is None else self._whole(SIGNATURE, digest, MAX_SIGNATURE)

    def variants(self) -> tuple[str, ...]:
        manifest = self._contents.manifest
        return tuple(each.id for each in manifest.variants if all(self._has(file.sha256) for file in each.files))

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        made, held = self._made.get(file.sha256), self._held.get(file.sha256)
        if not self._has(file.sha256):
            raise BundleError(
                f"{name} cannot be made of {self.place} and of what is here of its base.",
                hint="Install the whole bundle, or other variants.",
            )
        if (made.size if made else held[1] if held else None) != file.size:
            raise damaged(self.place, f"its {name} has another size than the manifest says")
        if made is not None:
            return self._put_together(made, begin)
        assert held is not None
        return _from_base(held[0], begin, file.size - begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def _opened_base(self, folder: Path) -> Bundle:
        try:
            return open_bundle(folder, verify="sizes", id=f"sha256:{self._index.base}")
        except BundleError as error:
            raise BundleDamagedError(
                f"The base of {self.place} is damaged: {error.message}", hint="Install the whole of the new bundle."
            ) from None

    def _literals_of_each(self) -> dict[str, int]:
        """Return where the literals of each file that is made begin."""
        begins, at = {}, HEADER.size
        for made in self._index.made:
            begins[made.sha256] = at
            at += int(made.table()["stored"].sum(dtype=np.uint64))
        return begins

    def _has(self, digest: str) -> bool:
        return digest not in self._lacking if digest in self._made else digest in self._held

    def _manifest(self, name: str) -> bytes:
        digests = {MANIFEST: self._index.bundle, f"{DRAFT}/{MANIFEST}": self._index.draft}
        if (digest := digests.get(name)) is None:
            raise damaged(self.place, f"it has no {name}")
        return self._whole(name, digest, MAX_MANIFEST)

    def _whole(self, name: str, digest: str, limit: int) -> bytes:
        """Return a file that no manifest lists, checked."""
        made, held = self._made.get(digest), self._held.get(digest)
        size = made.size if made else held[1] if held else 0
        if size > limit:
            raise damaged(self.place, f"its {name} has more than {limit:,} bytes")
        data = b"".join(self.blocks(name, File(path=name, size=size, sha256=digest)))
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged(self.place, f"its {name} is not what it says")
        return data

    def _put_together(self, made: Made, begin: int) -> Iterator[bytes]:
        pieces = made.table()
        ends = pieces["length"].cumsum(dtype=np.uint64)
        first = int(ends.searchsorted(begin, side="right"))
        at = self._begins[made.sha256] + int(pieces["stored"][:first].sum(dtype=np.uint64))
        skip = begin - (int(ends[first - 1]) if first else 0)
        for row in range(first, len(pieces)):
            source, length, stored, offset = pieces[row].item()
            base = None if source == LITERAL else self._held[self._index.sources[source]][0]
            if stored:
                data = self._literals(at, stored, length)
                yield (data if base is None else _sum(b"".join(_from_base(base, offset, length)), data))[skip:]
            elif base is not None:
                yield from _from_base(base, offset + skip, length - skip)
            at, skip = at + stored, 0

    def _literals(self, begin: int, stored: int, length: int) -> bytes:
        """Return so many bytes, of which ``stored`` are in the file."""
        data = self._read(begin, stored)
        if stored == length:
            return data
        stream = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = stream.decompress(data, length + 1)
        except zlib.error:
            data = b""
        if len(data) != length or not stream.eof or stream.unused_data:
            raise damaged(self.place, f"its literals at byte {begin:,} do not make {length:,} bytes")
        return data

    def _read(self, begin: int, length: int) -> bytes:
        try:
            data = b"".join(span(self._file, begin, length))
        except OSError as error:
            raise BundleError(f"{self.place} cannot be read: {error.strerror}.", hint="Get it again.") from None
        if len(data) != length:
            raise damaged(self.place, "it is cut short")
        return data


def held(bundle: Bundle) -> Held:
    """Return the files of a bundle that are here, its manifests among them, by their sha256."""
    files = {file.sha256: (bundle.path / name, file.size) for name, file in bundle.files().items()}
    for each in (bundle, bundle.draft):
        if each is not None:
            manifest = each.path / MANIFEST
            files[each.id] = manifest, manifest.stat().st_size
    return files


def _from_base(path: Path, begin: int, length: int) -> Iterator[bytes]:
    """Yield so many bytes of a file of the base, in blocks of 1 MiB. Raises ``BundleError``."""
    with opened_regular(path) as descriptor:
        for block in span(descriptor, begin, length):
            length -= len(block)
            yield block
    if length:
        raise BundleDamagedError(f"{path} is damaged: it is cut short.", hint="Install the whole of the new bundle.")


def _sum(one: bytes, other: bytes) -> bytes:
    return (np.frombuffer(one, np.uint8) + np.frombuffer(other, np.uint8)).tobytes()
