"""Keys and policies on the disk: files of whoever administers this machine, who may put links in their place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from edgepack.errors import TrustError


def there(path: Path) -> bool:
    """Say whether something has a path: a link that leads nowhere too, and what may not be looked at.

    Raises ``TrustError`` where the system does not say.
    """
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _unreadable(path, error) from None
    return True


def read(path: Path, limit: int) -> bytes:
    """Return a file, at most one byte more than the limit; never waiting for a pipe's other side.

    Raises ``TrustError`` where it cannot be read, and for what is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise TrustError(f"{path} is no regular file.", hint="Put the file itself there.")
            data = b""
            while len(data) <= limit and (block := os.read(descriptor, limit + 1 - len(data))):
                data += block
            return data
        finally:
            os.close(descriptor)
    except (OSError, ValueError) as error:
        if isinstance(error, TrustError):
            raise
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError | ValueError) -> TrustError:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    return TrustError(f"{path} cannot be read: {reason}.", hint="Check the path and its permissions.")
