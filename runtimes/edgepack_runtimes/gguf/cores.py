"""How many of the cores that this process may use are free: what the system counts, less what the process takes."""

from __future__ import annotations

import os
from contextlib import suppress
from time import perf_counter, process_time
from typing import Final

_STAT: Final = "/proc/stat"
_IDLE: Final = 2, 4, 5  # of a line's numbers: nice, which gives way by itself; idle; waiting for a disk


class Cores:
    """A look at the cores, each of which tells what was between it and the look before."""

    def __init__(self, stat: str = _STAT) -> None:
        self._stat = stat
        self._before = self._now()

    def free(self) -> float | None:
        """Return the cores that others left since the last look (the first: since this was made), None where the system
        does not say. A core is counted in hundredths of a second of the whole time, so that short times are coarse."""
        before, self._before = self._before, self._now()
        if before is None or self._before is None:
            return None
        (cpus, busy, own, wall), (_, busy_before, own_before, wall_before) = self._before, before
        if wall <= wall_before:
            return None
        others = (busy - busy_before) - (own - own_before)
        return cpus - max(0.0, others) / (wall - wall_before)

    def _now(self) -> tuple[int, float, float, float] | None:
        """Return how many cores there are, how long all together were busy, this process's part, and the time, in s."""
        with suppress(OSError, ValueError, AttributeError):
            usable = {f"cpu{number}" for number in os.sched_getaffinity(0)}
            with open(self._stat, encoding="ascii") as file:
                lines = [line.split() for line in file if line.startswith("cpu")]
            busy = sum(
                int(number)
                for name, *numbers in lines
                if name in usable
                for place, number in enumerate(numbers[:8], 1)
                if place not in _IDLE
            )
            return len(usable), busy / os.sysconf("SC_CLK_TCK"), process_time(), perf_counter()
        return None
