"""How many threads the next step gets: as many as were asked for while the cores are free, fewer while others use them.

llama.cpp's threads wait for each other at every operator by spinning. Where another program has a core, those that run
wait for the one that does not, and two threads are up to a hundred times slower than one (measured). What a step costs
tells: on free cores its CPU time is the number of threads times its wall time. Before the first step, and before all
are tried again, the system is asked what others use, as one such step may take seconds. The results are the same for
any number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

_WINDOW_S: Final = 0.02
"""Wall time of steps that are judged together: a clock of the scheduler is no finer."""

_MISSING: Final = 0.3
"""Of one thread's time: what may be missing in all of them together before one of them is given up."""

_LOOK_S: Final = 0.1
"""Wall time of steps from one look at the cores to the next, where that is what keeps threads away."""

_REST_S: Final = 0.25, 8.0
"""Wall time of steps with fewer threads before all are tried again: at first, and at most, doubled at every failure.
After the most they are tried whatever the system says: others may be of a kind that gives way."""

_PRICE: Final = 20
"""Times what a failed trial took is the least time before the next, so that trials cost 5 %."""


class Threads:
    """The number of threads of a session, ``count``, at most ``most``.

    ``free`` returns the cores that others left since it was last called, None where the system does not say.
    """

    def __init__(self, most: int, free: Callable[[], float | None] = lambda: None) -> None:
        self.most = self.count = most
        self._free = free
        self._wall = self._cpu = 0.0
        self._rest, self._left, self._passed = _REST_S[0], 0.0, 0.0
        self._first = True

    def next(self) -> int:
        """Return how many threads the next step gets; before the first one, the cores are looked at."""
        if self._first and self.most > 1 and (fits := self._fits()) < self.most:
            self._fewer(fits, _LOOK_S)
        self._first = False
        return self.count

    def took(self, wall: float, cpu: float) -> None:
        """Take in what a step with ``count`` threads cost, in seconds: of the clock, and of the process's CPU time."""
        if self.count < self.most:
            self._passed += wall
            self._left -= wall
            if self._left <= 0:
                self._again()
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
            self._fewer(int(had), max(self._rest, _PRICE * spent))
            self._rest = min(2 * self._rest, _REST_S[1])

    def _again(self) -> None:
        fits = self._fits()
        if fits >= self.most or self._passed >= _REST_S[1]:
            self.count = self.most
        else:
            self.count, self._left = max(1, fits), _LOOK_S

    def _fewer(self, threads: int, rest: float) -> None:
        self.count = min(self.most - 1, max(1, threads))
        self._left, self._passed = rest, 0.0
        self._free()  # what is asked for later begins here

    def _fits(self) -> int:
        free = self._free()
        return self.most if free is None else int(free + _MISSING)
