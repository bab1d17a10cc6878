"""A bundle on its way in: the one door before folders, archives, web folders, registries and differences."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from edgepack import extras
from edgepack.bundle.files import MANIFEST, MAX_MANIFEST, MAX_SIGNATURE, SIGNATURE, open_bundle
from edgepack.bundle.manifest import File
from edgepack.bundle.packed import is_packed
from edgepack.errors import BundleError
from edgepack_ship.archive.packed import Archive
from edgepack_ship.contents import Contents, contents
from edgepack_ship.delta.difference import Difference, recognised
from edgepack_ship.reading import blocks_of, bytes_of
from edgepack_ship.registry.address import is_address

Bases = Callable[[str], Path | None]
"""Returns the folder of an installed bundle by its id, None where it is not: what a difference is applied to."""


class Incoming(Protocol):
    """A bundle that can be read once, file by file. Whatever comes out of it is a stranger's until it was checked."""

    @property
    def place(self) -> str:
        """What it was called by whoever named it, for sentences."""
        ...

    def contents(self) -> Contents:
        """Return what the bundle consists of. Raises ``BundleError``."""
        ...

    def signature(self) -> bytes | None:
        """Return its model.sig, at most ``MAX_SIGNATURE`` bytes, None where it has none. Raises ``BundleError``."""
        ...

    def variants(self) -> tuple[str, ...]:
        """Return the ids of the variants that it has, of those that its manifest lists."""
        ...

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        """Yield a file from the byte ``begin`` on, in blocks of at most some MiB.

        ``name`` and ``file`` are those of its ``contents``. Whoever reads compares size and digest, and takes no byte
        more than ``file.size``. Raises ``BundleError``.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Folder:
    """A bundle's folder."""

    def __init__(self, path: Path) -> None:
        self._bundle = open_bundle(path, verify="sizes")
        self.place = str(path)

    def contents(self) -> Contents:
        return contents(lambda name: bytes_of(self._bundle.path / name, MAX_MANIFEST))

    def signature(self) -> bytes | None:
        return signature_of(self._bundle.path)

    def variants(self) -> tuple[str, ...]:
        return tuple(each.id for each in self._bundle.manifest.variants)

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        return blocks_of(self._bundle.path / name, begin)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass


def signature_of(folder: Path) -> bytes | None:
    """Return the model.sig of a bundle's folder, None where it has none. Raises ``BundleError``."""
    path = folder / SIGNATURE
    return bytes_of(path, MAX_SIGNATURE) if os.path.lexists(path) else None


def opened(where: str, bases: Bases, plain_http: bool = False) -> Incoming:
    """Return the bundle that lies at a path or an address. Raises ``BundleError`` where none does.

    ``plain_http`` allows to ask other machines than this by http, where anybody on the way can read and change it.
    """
    if is_address(where):
        with extras.needed("A bundle on the network", "ship"):
            from edgepack_ship.registry import opening  # which loads urllib3
        return opening.opened(where, plain_http)
    path = Path(where)
    if path.is_dir() or not path.exists():
        return Folder(path)
    if is_packed(path):
        return Archive(path)
    if recognised(path):
        return Difference(path, bases)
    raise BundleError(f"{where} is no bundle: it has no {MANIFEST}, and is no archive.", hint="Check the path.")
