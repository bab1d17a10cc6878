"""A packed bundle on its way in."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

from edgepack.bundle.files import DRAFT, MAX_MANIFEST, MAX_SIGNATURE, SIGNATURE, VARIANTS
from edgepack.bundle.manifest import File
from edgepack.errors import BundleDamagedError, BundleError, BundleNotFoundError
from edgepack_ship.archive import members
from edgepack_ship.archive.headers import MalformedError, shown
from edgepack_ship.archive.members import Member
from edgepack_ship.contents import Contents, contents
from edgepack_ship.reading import BLOCK

_COMPRESSED = {b"\x1f\x8b": "gzip -d", b"\x28\xb5\x2f\xfd": "zstd -d", b"\xfd7zXZ": "xz -d", b"BZh": "bzip2 -d"}


class Archive:
    """A packed bundle: what ``edgepack pack`` writes, and any uncompressed tar of a bundle's folder.

    The headers are read, and compared with the manifest, when it is opened. Raises ``BundleNotFoundError`` where there
    is no file, and ``BundleDamagedError`` for one that is cut off, or holds anything but what its manifest names.
    """

    def __init__(self, path: Path) -> None:
        self.place = str(path)
        self._file = _opened(path)
        try:
            self._members = self._scanned()
            self._contents = contents(lambda name: self._whole(name, MAX_MANIFEST))
            self._check()
        except BaseException:
            self._file.close()
            raise

    def contents(self) -> Contents:
        return self._contents

    def signature(self) -> bytes | None:
        return self._whole(SIGNATURE, MAX_SIGNATURE) if SIGNATURE in self._members else None

    def variants(self) -> tuple[str, ...]:
        held = {name.split("/")[1] for name in self._members if name.startswith(f"{VARIANTS}/")}
        return tuple(id for id in self._contents.variants if id in held)

    def blocks(self, name: str, file: File, begin: int = 0) -> Iterator[bytes]:
        yield from self._blocks(self._member(name), begin)

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _scanned(self) -> dict[str, Member]:
        try:
            begin = self._file.read(8)
            if tool := next((tool for magic, tool in _COMPRESSED.items() if begin.startswith(magic)), None):
                raise self._damaged("it is compressed", f"Decompress it first: {tool} FILE")
            return members.members(self._file)
        except MalformedError as error:
            raise self._damaged(str(error)) from None
        except OSError as error:
            raise self._unreadable(error) from None

    def _check(self) -> None:
        """Raise for members that the manifest does not name, and for what it names of a variant that is here, or of
        all others, and is not there in its size."""
        listed = self._contents.files(self.variants())
        known = {
            *listed,
            *self._contents.manifests(),
            SIGNATURE,
            *([f"{DRAFT}/{SIGNATURE}"] if self._contents.draft else []),
        }
        for name in self._members:
            if name not in known and not members.passed_over(name):
                raise self._damaged(f"its manifest does not list {shown(name.encode())}")
        for name, file in listed.items():
            size = self._member(name).size
            if size != file.size:
                what = f"{shown(name.encode())} has {size:,} bytes where the manifest says {file.size:,}"
                raise self._damaged(what)

    def _member(self, name: str) -> Member:
        if (member := self._members.get(name)) is None:
            raise self._damaged(f"it has no {name}")
        return member

    def _whole(self, name: str, limit: int) -> bytes:
        member = self._member(name)
        if member.size > limit:
            raise self._damaged(f"its {name} has more than {limit:,} bytes")
        return b"".join(self._blocks(member, 0))

    def _blocks(self, member: Member, begin: int) -> Iterator[bytes]:
        at, end = member.offset + begin, member.offset + member.size
        while at < end:
            try:
                self._file.seek(at)
                block = self._file.read(min(BLOCK, end - at))
            except OSError as error:
                raise self._unreadable(error) from None
            if not block:
                raise self._damaged("it became shorter while it was read")
            at += len(block)
            yield block

    def _damaged(self, what: str, hint: str = "Get it again; `edgepack pack` makes one of a bundle.") -> BundleError:
        return BundleDamagedError(f"{self.place} is no sound packed bundle: {what}.", hint=hint)

    def _unreadable(self, error: OSError) -> BundleError:
        return BundleError(f"{self.place} cannot be read: {error.strerror}.", hint="Check the disk that it is on.")


def _opened(path: Path) -> FileIO:
    """Open a regular file; nothing is waited for."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (FileNotFoundError, NotADirectoryError):
        raise BundleNotFoundError(f"There is no packed bundle at {path}.", hint="Check the path.") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BundleError(f"{path} cannot be read: {reason}.", hint="Check the path.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BundleError(f"{path} is no file, and no packed bundle.", hint="Check the path.")
    return open(descriptor, "rb", buffering=0)
