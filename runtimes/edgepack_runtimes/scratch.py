"""A place for a generated model: in memory where the system has that, else a folder that goes with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path


@contextmanager
def held(data: bytes | bytearray) -> Iterator[Path]:
    """Yield the path of a file with the data. Raises ``OSError`` where the system has no place for it."""
    with ExitStack() as stack:
        path = None
        if hasattr(os, "memfd_create"):
            file = stack.enter_context(os.fdopen(os.memfd_create("edgepack"), "wb"))
            file.write(data)
            file.flush()
            path = Path(f"/proc/self/fd/{file.fileno()}")
        if path is None or not path.exists():
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-")), "model")
            path.write_bytes(data)
        yield path
