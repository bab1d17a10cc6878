"""What a process holds, before and after: descriptors, threads, objects, memory."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

# Linux counts what was resident where a process was started as its own, so one starts it that has next to nothing.
_STARTER = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ), 0)
with open(sys.argv[1], "w") as file:
    file.write(str(usage.ru_maxrss // (1024 if sys.platform == "darwin" else 1)))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def most_resident(command: Sequence[str], log: Path, **options: Any) -> int:
    """Run a command, its output in ``log``, and return the KiB of the largest of its processes. It has to end well."""
    told = log.with_suffix(".kib")
    with open(log, "wb") as said:
        starter = [sys.executable, "-c", _STARTER, str(told), *command]
        done = subprocess.run(starter, stdout=said, stderr=said, check=False, **options)
    assert done.returncode == 0, log.read_text()
    return int(told.read_text())


def held() -> tuple[int, int, int, int]:
    """Return the descriptors, the threads, the objects of Python and the resident KiB of this process."""
    gc.collect()
    with suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)  # what threads freed, which glibc keeps for each of them
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
