"""Measurements in rounds that lie apart in time: a program that is busy for a moment spoils one of them, not all.

Each round takes every measurement once, in turns. Others only make a run slower, so that the least is what counts, and
it is sure when two quiet rounds found it. A neighbour that this system does not see, as beside a virtual machine, slows
what waits for memory by half for a second or two: hence three rounds at least. What is not sure by then is taken again,
a few times. This module knows nothing of engines: what it is given computes, and says how long.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from edgepack.device.neighbours import Look, disturbs, look, taken

AGREE: Final = 1.1
"""The two least of quiet rounds' times differ by less; docs/benchmarks.md shows by how much."""

COMPUTES: Final = 0.75
"""Of the time that its threads have, an engine that nobody disturbs computes at least so much: on two of two cores it
was 0.85 and more, beside a busy program 0.5 to 0.65."""

FEWEST: Final = 3
MOST: Final = 5
"""Rounds of what is sure as soon as it can be, and of what never is."""

LONG_S: Final = 0.25
"""Runs of one measurement in one round take no longer, but for one."""

PAUSE_S: Final = 0.2
"""Between rounds: a scheduler's slice is over by then."""

Run = Callable[["Watch"], Sequence[float]]
"""Takes one measurement, under a watch: seconds, as many each time."""

_START: Final = Look(0.0, 0.0, 0.0)


class Watch:
    """What other programs took during the runs of one measurement, not while it was made ready."""

    def __init__(self, threads: int, look: Callable[[], Look] = look) -> None:
        self._threads, self._look = threads, look
        self._runs = _START

    def least(self, run: Callable[[], float], count: int) -> float:
        """Return the least of the seconds that ``count`` runs say, or fewer where these are long."""
        before = self._look()
        found = [run()]
        while len(found) < count and sum(found) < LONG_S:
            found.append(run())
        after, so_far = self._look(), self._runs
        told = None not in (before.everyone, after.everyone, so_far.everyone)
        self._runs = Look(
            so_far.clock + after.clock - before.clock,
            so_far.own + after.own - before.own,
            (so_far.everyone or 0.0) + (after.everyone or 0.0) - (before.everyone or 0.0) if told else None,
        )
        return min(found)

    @property
    def quiet(self) -> bool:
        """Say whether nobody disturbed, by what the system counts, or where it does not by what this process got."""
        others = taken(_START, self._runs)
        if others is None:
            return self._runs.own >= COMPUTES * self._threads * self._runs.clock
        return not disturbs(others, self._threads)


@dataclass(frozen=True, slots=True)
class Taken:
    """What one round says of a measurement."""

    seconds: tuple[float, ...]
    quiet: bool


def measure(
    kinds: Mapping[str, Run],
    beside: Mapping[str, Run],
    threads: int,
    limit_s: float,
    *,
    look: Callable[[], Look] = look,
    pause: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, tuple[float, ...]], bool]:
    """Return the seconds of each measurement, and whether all of them are sure.

    After ``limit_s`` no more of the ``kinds`` are begun with, nor rounds beyond the fewest, nor any after one that was
    disturbed. ``beside`` is measured where any of the kinds is.
    """
    end = look().clock + limit_s
    found: dict[str, list[Taken]] = {}
    unsure = {**kinds, **beside}
    for count in range(1, MOST + 1):
        for name, run in unsure.items():
            if name in found or (found if name in beside else look().clock < end):
                watch = Watch(threads, look)
                seconds = tuple(run(watch))
                found.setdefault(name, []).append(Taken(seconds, watch.quiet))
        quiet = all(rounds[-1].quiet for name, rounds in found.items() if name in unsure)
        unsure = {name: run for name, run in unsure.items() if name in found and not sure(found[name])}
        if not unsure or (look().clock >= end and (count >= FEWEST or not quiet)):
            break
        pause(PAUSE_S)
    return {name: best(each) for name, each in found.items()}, bool(found) and not unsure


def sure(rounds: Sequence[Taken]) -> bool:
    """Say whether there were enough rounds, and two quiet ones that found the least of each of their times."""
    quiet = [each.seconds for each in rounds if each.quiet]
    return (
        len(rounds) >= FEWEST
        and len(quiet) > 1
        and all(sorted(times)[1] <= AGREE * min(times) for times in zip(*quiet, strict=True))
    )


def best(rounds: Sequence[Taken]) -> tuple[float, ...]:
    """Return the least times of the quiet rounds, of all where none was quiet: others only make a run slower."""
    quiet = [each for each in rounds if each.quiet] or rounds
    return tuple(min(times) for times in zip(*(each.seconds for each in quiet), strict=True))
