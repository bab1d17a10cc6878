"""What other programs take of the processor while something is measured. The arithmetic takes text and numbers.

A figure that was taken beside a busy program says little of the machine, so whoever measures looks before and after.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

BUSY = 0.1
"""Of each thread's core: what others may take before a measurement with so many threads is not one of this machine."""


@dataclass(frozen=True, slots=True)
class Look:
    """A moment: the clock, this process's CPU time, and the CPU time of all programs (None: the system does not say).
    All in seconds."""

    clock: float
    own: float
    everyone: float | None


def look(root: Path = Path("/")) -> Look:
    """Return this moment's look at the CPUs that this process may use. Never raises."""
    try:
        stat = (root / "proc/stat").read_text("utf-8", "replace")
        every = spent(stat, os.sched_getaffinity(0)) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, AttributeError):
        every = None
    return Look(time.perf_counter(), time.process_time(), every)


def spent(stat: str, cpus: set[int]) -> int:
    """Return the ticks of /proc/stat in which ``cpus`` computed, for this system or, stolen, for its host's others.

    Raises ``ValueError`` where the text has none of them. Fields of a line: proc_stat(5); of the guests' time, which
    the last two repeat, only the first eight count.
    """
    names = {f"cpu{cpu}" for cpu in cpus}
    lines = [words for line in stat.splitlines() if (words := line.split()) and words[0] in names]
    if not lines:
        raise ValueError("no such CPU in /proc/stat")
    counted = 0
    for words in lines:
        user, nice, system, _idle, _iowait, *rest = (int(word) for word in words[1:9])
        counted += user + nice + system + sum(rest)
    return counted


def taken(before: Look, after: Look) -> float | None:
    """Return how many cores other programs took between two looks on average; None where the system does not say."""
    if before.everyone is None or after.everyone is None or after.clock <= before.clock:
        return None
    others = (after.everyone - before.everyone) - (after.own - before.own)
    return max(0.0, others / (after.clock - before.clock))


def disturbs(cores: float | None, threads: int) -> bool:
    """Say whether others that take so many cores disturb a measurement with so many threads."""
    return cores is not None and cores > BUSY * threads
