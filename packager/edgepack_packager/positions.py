"""Files that are read and written at a place, on systems that have calls for that and on Windows, which has none."""

from __future__ import annotations

import os
from threading import Lock

BINARY: int = getattr(os, "O_BINARY", 0)
"""For ``os.open``: Windows changes the ends of lines in a file that is opened without it."""

_moving = Lock()  # on Windows a descriptor has one place, whoever uses it


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Return up to ``size`` bytes at a place. Raises ``OSError``."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    with _moving:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, size)


def write_at(descriptor: int, data: bytes | memoryview, offset: int) -> int:
    """Write bytes at a place, and return how many. Raises ``OSError``."""
    if hasattr(os, "pwrite"):
        return os.pwrite(descriptor, data, offset)
    with _moving:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.write(descriptor, data)
