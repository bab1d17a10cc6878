"""How many threads the next step gets: as many as were asked for while the cores are free, fewer while others use them.

llama.cpp's threads wait for each other at every operator by spinning. Where another program has a core, those that run
wait for the one that does not, and two threads are up to a hundred times slower than one (measured). What a step costs
tells: on free cores its CPU time is the number of threads times its wall time. The results are the same for any number.
"""

from __future__ import annotations

from typing import Final

_WINDOW_S: Final = 0.02
"""Wall time of steps that are judged together: a clock of the scheduler is no finer."""

_MISSING: Final = 0.3
"""Of one thread's time: what may be missing in all of them together before one of them is given up."""

_REST_S: Final = 0.25, 8.0
"""Wall time of steps with fewer threads before all are tried again: at first, and at most, doubled at every failure."""

_PRICE: Final = 20
"""Times what a failed trial took is the least time before the next, so that trials cost 5 %."""


class Threads:
    """The number of threads of a session, ``count``, at most ``most``."""

    def __init__(self, most: int) -> None:
        self.most = self.count = most
        self._wall = self._cpu = 0.0
        self._rest, self._left = _REST_S[0], 0.0

    def took(self, wall: float, cpu: float) -> None:
        """Take in what a step with ``count`` threads cost, in seconds: of the clock, and of the process's CPU time."""
        if self.count < self.most:
            self._left -= wall
            if self._left <= 0:
                self.count = self.most
            return
        self._wall += wall
        self._cpu += cpu
        if self.most == 1 or self._wall < _WINDOW_S:
            return
        spent, had = self._wall, self._cpu / self._wall
        self._wall = self._cpu = 0.0
        if had >= self.most - _MISSING:
            self._rest = _REST_S[0]
        else:
            self.count = min(self.most - 1, max(1, int(had)))
            self._left = max(self._rest, _PRICE * spent)
            self._rest = min(2 * self._rest, _REST_S[1])
