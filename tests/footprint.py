"""What a process holds, before and after: descriptors, threads, objects, memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path


def held() -> tuple[int, int, int, int]:
    """Return the descriptors, the threads, the objects of Python and the resident KiB of this process."""
    gc.collect()
    status = Path("/proc/self/status").read_text()
    resident = int(status.split("VmRSS:")[1].split()[0])
    native = int(status.split("Threads:")[1].split()[0])
    return len(os.listdir("/proc/self/fd")), native, len(gc.get_objects()), resident


def assert_flat(before: tuple[int, ...], after: tuple[int, ...], kib: int, pool: int = 0) -> None:
    """``kib``: what allocators may keep of what was freed; ``pool``: the threads that a pool may yet have started."""
    descriptors, threads, objects, resident = (now - then for now, then in zip(after, before, strict=True))
    assert descriptors <= 0, (before, after)
    assert threads <= pool, (before, after)
    assert objects < 500, (before, after)
    assert resident < kib, (before, after)
