"""Files that a stranger may have put there, read in bounded memory: regular ones alone, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from edgepack.errors import BundleDamagedError, BundleError

BLOCK = 1 << 20


def blocks_of(path: Path, begin: int = 0) -> Iterator[bytes]:
    """Yield a file from the byte ``begin`` on, in blocks of 1 MiB.

    Raises ``BundleDamagedError`` for what is no regular file, ``BundleError`` where the system refuses.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleDamagedError(f"{path} is no regular file.", hint="Get the bundle again.")
            os.lseek(descriptor, begin, os.SEEK_SET)
            while block := os.read(descriptor, BLOCK):
                yield block
        finally:
            os.close(descriptor)
    except OSError as error:
        if isinstance(error, BundleError):
            raise
        if error.errno == errno.ELOOP:
            raise BundleDamagedError(f"{path} is a symbolic link.", hint="Get the bundle again.") from None
        raise BundleError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from None


def bytes_of(path: Path, limit: int) -> bytes:
    """Return a whole file of at most ``limit`` bytes. Raises as ``blocks_of``, and for a larger one."""
    data = bytearray()
    for block in blocks_of(path):
        data += block
        if len(data) > limit:
            raise BundleDamagedError(f"{path} has more than {limit:,} bytes.", hint="Get the bundle again.")
    return bytes(data)
