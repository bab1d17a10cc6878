"""What an archive consists of: one pass over its headers, which jumps over all that stands between them."""

from __future__ import annotations

from dataclasses import dataclass
from io import FileIO
from posixpath import commonprefix

from edgepack.bundle.files import MAX_MANIFEST
from edgepack.bundle.foreign import foreign
from edgepack_ship.archive import headers
from edgepack_ship.archive.headers import UNIT, Header, MalformedError

MAX_MEMBERS = 1 << 16
MAX_NAMES = MAX_MANIFEST
"""Bytes of all names: a manifest, which lists them, has no more."""


@dataclass(frozen=True, slots=True)
class Member:
    """Where the bytes of a regular file are."""

    offset: int
    size: int


def members(file: FileIO) -> dict[str, Member]:
    """Return the regular files of an archive by their paths relative to the folder that all of them are in.

    Folders are passed over. Raises ``MalformedError`` for an archive that is cut off, holds anything else, or more
    than a bundle can.
    """
    found: dict[str, Member] = {}
    reader = _Reader(file)
    names = 0
    for _ in range(MAX_MEMBERS):
        if (read := reader.next()) is None:
            return _relative(found)
        name, member = read
        if member is None:
            continue
        if name in found:
            raise MalformedError(f"{headers.shown(name.encode())} stands there twice")
        names += len(name.encode())
        if names > MAX_NAMES:
            raise MalformedError(f"its names have more than {MAX_NAMES:,} bytes")
        found[name] = member
    raise MalformedError(f"it has more than {MAX_MEMBERS:,} members")


def passed_over(name: str) -> bool:
    """Say whether a member is what desktops leave in folders, and tars of their own bring along."""
    *folders, file = name.split("/")
    return foreign(file, False) or any(foreign(each, True) for each in folders)


def _relative(found: dict[str, Member]) -> dict[str, Member]:
    """Return the members by their paths within the folder that all are in, which a tar of a folder has as well."""
    common = commonprefix([name for name in found if not passed_over(name)])
    prefix = common[: common.rfind("/") + 1]
    return {name.removeprefix(prefix): member for name, member in found.items() if name.startswith(prefix)}


class _Reader:
    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._length = file.seek(0, 2)
        self._at = 0

    def next(self) -> tuple[str, Member | None] | None:
        """Return the path of the next member and where its bytes are, None for those of a folder; None at the end."""
        if (header := self._header()) is None:
            return None
        name, size = None, None
        if header.kind in headers.SPOKEN:
            name, size = self._said(header)
            header = self._header()
            if header is None or header.kind in headers.SPOKEN:
                raise MalformedError("the records of a member are not followed by it")
        folder = header.kind == "folder"
        told = headers.name_of(header.name if name is None else name, folder)
        member = Member(self._at, header.size if size is None else size)
        self._skip(member.size, headers.shown(told.encode()))
        return told, None if folder else member

    def _said(self, header: Header) -> tuple[bytes | None, int | None]:
        """Return the name and the size that the records of a member, or the long name before it, give to it."""
        if header.size > headers.MAX_EXTENSION:
            raise MalformedError(f"the records of a member have more than {headers.MAX_EXTENSION:,} bytes")
        data = self._read(header.size)
        self._skip(header.size, "the records of a member", len(data))
        return headers.records(data) if header.kind == "pax" else (data.removesuffix(b"\0"), None)

    def _header(self) -> Header | None:
        block = self._read(UNIT)
        if any(block):
            return headers.decoded(block)
        if any(self._read(UNIT)):
            raise MalformedError("an empty header stands in the middle of it")
        return None

    def _read(self, size: int) -> bytes:
        self._file.seek(self._at)
        data = self._file.read(size)
        if len(data) < size:
            raise MalformedError("it is cut off: it has no end")
        self._at += size
        return data

    def _skip(self, size: int, what: str, taken: int = 0) -> None:
        self._at += size + len(headers.filling(size)) - taken
        if self._at > self._length:
            raise MalformedError(f"it is cut off in the middle of {what}")
