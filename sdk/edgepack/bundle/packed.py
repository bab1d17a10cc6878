"""Bundles in one file, told from other files. ``edgepack pack`` writes them, ``edgepack unpack`` reads them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

_MAGIC, _AT = b"ustar", 257


def is_packed(path: Path) -> bool:
    """Say whether a regular file begins with a header of a tar archive. Nothing is waited for; what cannot be read
    is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError:
        return False
    try:
        return stat.S_ISREG(os.fstat(descriptor).st_mode) and os.read(descriptor, _AT + len(_MAGIC))[_AT:] == _MAGIC
    except OSError:
        return False
    finally:
        os.close(descriptor)
