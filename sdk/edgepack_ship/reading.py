"""Files that a stranger may have put there, read in bounded memory: regular ones alone, and never through a link."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edgepack.errors import BundleDamagedError, BundleError

BLOCK = 1 << 20


@contextmanager
def opened_regular(path: Path) -> Iterator[int]:
    """Yield the descriptor of a file that is to be read.

    Raises ``BundleDamagedError`` for what is no regular file, ``BundleError`` where the system refuses, in the block
    too.
    """
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise BundleDamagedError(f"{path} is no regular file.", hint="Get the bundle again.")
            yield descriptor
        finally:
            os.close(descriptor)
    except OSError as error:
        if isinstance(error, BundleError):
            raise
        if error.errno == errno.ELOOP:
            raise BundleDamagedError(f"{path} is a symbolic link.", hint="Get the bundle again.") from None
        raise BundleError(f"{path} cannot be read: {error.strerror}.", hint="Check its permissions.") from None


def blocks_of(path: Path, begin: int = 0) -> Iterator[bytes]:
    """Yield a file from the byte ``begin`` on, in blocks of 1 MiB. Raises as ``opened_regular``."""
    with opened_regular(path) as descriptor:
        os.lseek(descriptor, begin, os.SEEK_SET)
        while block := os.read(descriptor, BLOCK):
            yield block


def span(descriptor: int, begin: int, length: int) -> Iterator[bytes]:
    """Yield so many bytes of an open file from ``begin`` on, fewer where it ends, in blocks of 1 MiB.

    Raises ``OSError``.
    """
    os.lseek(descriptor, begin, os.SEEK_SET)
    while length and (block := os.read(descriptor, min(length, BLOCK))):
        length -= len(block)
        yield block


def bytes_of(path: Path, limit: int) -> bytes:
    """Return a whole file of at most ``limit`` bytes. Raises as ``blocks_of``, and for a larger one."""
    data = bytearray()
    for block in blocks_of(path):
        data += block
        if len(data) > limit:
            raise BundleDamagedError(f"{path} has more than {limit:,} bytes.", hint="Get the bundle again.")
    return bytes(data)
