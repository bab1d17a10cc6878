"""How many threads the next step gets: as many as were asked for while the cores are free, fewer while others use them.

An engine's threads wait for each other at every operator, and most spin meanwhile. Where another program has a core,
those that run wait for the one that does not, and all of them are slower than one (measured: 1.7 times on onnxruntime,
up to a hundred times on llama.cpp with OpenMP). What a step costs tells: on free cores its CPU time is the number of
threads times its wall time. Before the first step, and before all are tried again, the system is asked what others use,
as one such step may take seconds. ``Threads`` knows no engine and no system: it takes in seconds and gives a number.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

from edgepack.device.neighbours import look, taken

_WINDOW_S: Final = 0.1
"""Wall time of steps that are judged together: that no single tick of the clock, nor a moment that the system itself
takes, decides."""

_MISSING: Final = 0.3
"""Of one thread's time: what may be missing in all of them together before one of them is given up."""

_PRICE: Final = 3, 24
"""Times what a failed trial took is the rest before the next: at first, as it may have been a moment, and at most,
doubled at every failure in a row, so that trials cost 4 %."""

_LOOK_S: Final = 0.1
"""The least time in which the system's ticks of 10 ms tell how many cores others use; from one look to the next, where
that is what keeps threads away."""

_MOST_S: Final = 8.0
"""Wall time of steps with fewer threads after which a rest that is over ends whatever the system says: others may be of
a kind that gives way."""


class Threads:
    """The number of threads of a session, ``count``, at most ``most``.

    ``free`` returns the cores that others left since it was last called, None where nobody knows. ``asleep`` is the
    part of its time that each thread may sleep where it waits for others, on cores that are free; 0 if they spin. Those
    that sleep lose little by a trial, so that only the first look counts: others may be of a kind that gives way. With
    operators of microseconds they sleep for more of their time, and are all used for as long as the cores are free.
    """

    def __init__(self, most: int, free: Callable[[], float | None] = lambda: None, *, asleep: float = 0.0) -> None:
        self.most = self.count = most
        self._enough = most * (1 - asleep) - _MISSING
        self._sleeps = asleep > 0
        self._free = free
        self._wall = self._cpu = 0.0
        self._price = _PRICE[0]
        self._left = self._passed = 0.0
        self._first = True

    def next(self) -> int:
        """Return how many threads the next step gets; before the first one, the cores are looked at."""
        if self._first and (fits := self._fits()) < self.most:
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
        if self._wall >= _WINDOW_S:
            spent, had = self._wall, self._cpu / self._wall
            self._wall = self._cpu = 0.0
            self._judge(had, spent)

    def _judge(self, had: float, spent: float) -> None:
        if had >= self._enough or self._sleep_by_themselves():
            self._price = _PRICE[0]
        elif self.most > 1:
            self._fewer(int(had), self._price * spent)
            self._price = min(2 * self._price, _PRICE[1])

    def _sleep_by_themselves(self) -> bool:
        free = self._free() if self._sleeps else None
        return free is not None and free + _MISSING >= self.most

    def _fewer(self, threads: int, rest: float) -> None:
        self.count = min(self.most - 1, max(1, threads))
        self._left, self._passed = rest, 0.0
        self._free()  # what is asked for later begins here

    def _again(self) -> None:
        fits = self.most if self._sleeps else self._fits()
        if fits >= self.most or self._passed >= _MOST_S:
            self.count = self.most
        else:
            self.count, self._left = max(1, fits), _LOOK_S

    def _fits(self) -> int:
        free = self._free() if self.most > 1 else None
        return self.most if free is None else int(free + _MISSING)


class Watch:
    """Counts the cores that other programs leave of those that this process may use."""

    def __init__(self) -> None:
        self._before = look()

    def free(self) -> float | None:
        """Return their number since it was last told, or since this was made; None on systems that do not tell, and
        before it can be told. Nice programs count as others: those of another session give way to nobody here."""
        now = look()
        if now.clock - self._before.clock < _LOOK_S:
            return None
        others, self._before = taken(self._before, now), now
        return None if others is None else len(os.sched_getaffinity(0)) - others
