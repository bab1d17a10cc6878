"""A generated model: how large it must be, and a place in memory where the system has that, else a folder that goes
with it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from edgepack.device.hardware import last_level_cache

_MIB: Final = 1 << 20
_PIECE: Final = _MIB


def repeated(byte: int, count: int) -> list[bytes]:
    """Return ``count`` bytes of one value, in pieces of which all but the last are the same object."""
    piece = bytes([byte]) * min(count, _PIECE)
    return [piece] * (count // _PIECE) + ([piece[: count % _PIECE]] if count % _PIECE else [])


def uncached(root: Path = Path("/")) -> int:
    """Return bytes that the caches of this processor do not hold: three times what the largest of them does.

    Of half as many again, read in the same order each time, one on this kind of processor still has a fifth: a product
    of 8 bits took 28 ps a weight, where it took 44 with three times as many. 8 to 128 MiB, 48 where the system does not
    say.
    """
    largest = last_level_cache(root)
    return min(max(3 * largest, 8 * _MIB), 128 * _MIB) if largest else 48 * _MIB


@contextmanager
def held(pieces: Iterable[bytes]) -> Iterator[Path]:
    """Yield the path of a file of the pieces. Raises ``OSError`` where the system has no place for it."""
    with ExitStack() as stack:
        path = None
        if hasattr(os, "memfd_create"):
            file = stack.enter_context(os.fdopen(os.memfd_create("edgepack"), "wb"))
            file.writelines(pieces)
            file.flush()
            path = Path(f"/proc/self/fd/{file.fileno()}")
        if path is None or not path.exists():
            path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edgepack-")), "model")
            with path.open("wb") as file:
                file.writelines(pieces)
        yield path
