"""How many threads the next step gets: as many as were asked for while the cores are free, fewer while others use them.

An engine's threads wait for each other at every operator by spinning. Where another program has a core, those that run
wait for the one that does not, and all of them are slower than one (measured: 1.7 times on onnxruntime, up to a
hundred times on llama.cpp with OpenMP). What a step costs tells: threads that spin use, on free cores, as much CPU time
as there are threads in its wall time. This module knows no engine: it takes in seconds and gives a number.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from time import perf_counter, process_time
from typing import Final

_WINDOW_S: Final = 0.05
"""Wall time of steps that are judged together: that no single tick of the clock, nor a moment that the system itself
takes, decides."""

_MISSING: Final = 0.3
"""Of one thread's time: what may be missing in all of them together before one of them is given up."""

_REST_S: Final = 0.25
"""The least wall time of steps with fewer threads before all are tried again."""

_PRICE: Final = 20
"""Times what a failed trial took is that time, so that trials cost 5 %."""

_LOOK_S: Final = 0.1
"""The least time in which a count of ticks of 10 ms tells how many cores others use."""


class Threads:
    """The number of threads of a session, ``count``, at most ``most``. ``free`` is how many cores are free for them
    before anything has run, None where nobody knows."""

    def __init__(self, most: int, free: float | None = None) -> None:
        self.most = self.count = most
        self._wall = self._cpu = 0.0
        self._left = 0.0
        if free is not None:
            self._judge(free, 0.0)

    def took(self, wall: float, cpu: float) -> None:
        """Take in what a step with ``count`` threads cost, in seconds: of the clock, and of the process's CPU time."""
        if self.count < self.most:
            self._left -= wall
            if self._left <= 0:
                self.count = self.most
            return
        self._wall += wall
        self._cpu += cpu
        if self._wall >= _WINDOW_S:
            spent, had = self._wall, self._cpu / self._wall
            self._wall = self._cpu = 0.0
            self._judge(had, spent)

    def _judge(self, had: float, spent: float) -> None:
        if self.most > 1 and had < self.most - _MISSING:
            self.count = min(self.most - 1, max(1, int(had)))
            self._left = max(_REST_S, _PRICE * spent)


class Watch:
    """Counts, from its making on, the cores that other programs leave: a look before the first step, whose threads
    would else learn it the slow way."""

    def __init__(self, stat: Path = Path("/proc/stat")) -> None:
        self._stat = stat
        self._began, self._own, self._busy = perf_counter(), process_time(), busy_seconds(stat)

    def free(self) -> float | None:
        """Return the number of cores; None on systems that do not tell, and before it can be told."""
        passed, own, busy = perf_counter() - self._began, process_time() - self._own, busy_seconds(self._stat)
        if self._busy is None or busy is None or passed < _LOOK_S:
            return None
        return (os.cpu_count() or 1) - max(0.0, busy - self._busy - own) / passed


def busy_seconds(stat: Path = Path("/proc/stat")) -> float | None:
    """Return the seconds that all cores together have worked since the start of the system; None where it does not
    tell. Nice programs count: those of another session or group give way to nobody here."""
    try:
        found = re.match(r"cpu +(\d+) (\d+) (\d+) \d+ \d+ (\d+) (\d+) (\d+)", stat.read_text("ascii"))
    except (OSError, ValueError):
        return None
    return sum(map(int, found.groups())) / os.sysconf("SC_CLK_TCK") if found else None
