"""What a process may still take of its address space, where the system limits that (``ulimit -v``, RLIMIT_AS).

Native code that meets the limit in the middle of its own work ends the process, mostly without a word, so it is asked
for beforehand.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_MIB = 1 << 20

START = 112 * _MIB
"""What Python takes with numpy and this package, with one thread of OpenBLAS."""

_CODE: Mapping[str, int] = {"gguf": 110 * _MIB, "onnx": 140 * _MIB, "mlx": 155 * _MIB}
"""What a load of the demo model took at least beside what its plan predicts: libraries and stacks are reserved, not
used."""
_OTHER = 100 * _MIB
_THREAD = 72 * _MIB
"""A thread's stack, and the heap that the C library reserves for it; where threads compete for the last of it, some
engines wait for ever."""


def left() -> tuple[int, int] | None:
    """Return what is left of this process's address space and its limit, in bytes; None where there is no limit."""
    try:
        import resource

        limit = resource.getrlimit(resource.RLIMIT_AS)[0]
        if limit == resource.RLIM_INFINITY:
            return None
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    except (ImportError, AttributeError, OSError, ValueError):
        return None
    return max(0, limit - taken), limit


def shortage(runtime: str, beside: int = 0, threads: int = 1) -> str | None:
    """Return why an engine and so many bytes ``beside`` its code have no place, as a sentence; None where they have."""
    needed = _CODE.get(runtime, _OTHER) + beside + _THREAD * (threads - 1)
    if (found := left()) is None or found[0] >= needed:
        return None
    from edgepack.device.memory import human  # it needs numpy, which takes addresses itself

    return (
        f"{runtime} needs about {human(needed)} of memory addresses, and {human(found[0])} are left of the "
        f"{human(found[1])} that this process may have (ulimit -v)."
    )
