"""Measurements in rounds, on a machine of two cores whose clock, counters and neighbours are the test's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from edgepack.device.neighbours import Look
from edgepack_runtimes import rounds
from edgepack_runtimes.rounds import AGREE, FEWEST, MOST, Run, Taken, Watch, best, sure

STEP_S = 0.001
QUIET = {"q4": (0.04, 0.01), "q8": (0.03, 0.02), "layer": (0.3,)}
Spans = Sequence[tuple[float, float]]


class Machine:
    """Two cores, which an engine of two threads has alone but while a neighbour is ``busy``, who takes one of them.

    In ``slow`` times its memory gives half of what it gives else, and no counter says so. ``counted`` says whether the
    system counts what everyone computes.
    """

    def __init__(self, busy: Spans = (), slow: Spans = (), *, counted: bool = True, setup_s: float = 0.2) -> None:
        self.clock = self.own = self.everyone = 0.0
        self.measured: list[str] = []
        self._busy, self._slow, self._counted, self._setup_s = busy, slow, counted, setup_s

    def look(self) -> Look:
        return Look(self.clock, self.own, self.everyone if self._counted else None)

    def pause(self, seconds: float, computing: int = 0) -> None:
        self._pass(seconds, computing, neighbour=self._within(self._busy))

    def times(self, name: str) -> Run:
        """A measurement: made ready on one core, then each of its runs a few times on both."""

        def measure(watch: Watch) -> list[float]:
            self.measured.append(name)
            self.pause(self._setup_s, computing=1)
            return [watch.least(lambda seconds=seconds: self._run(seconds), 3) for seconds in QUIET[name]]

        return measure

    def measure(self, limit_s: float = 6.0) -> tuple[dict[str, tuple[float, ...]], bool]:
        kinds, beside = ({name: self.times(name) for name in names} for names in (("q4", "q8"), ("layer",)))
        return rounds.measure(kinds, beside, 2, limit_s, look=self.look, pause=self.pause)

    def _run(self, seconds: float) -> float:
        began, left = self.clock, seconds
        while left > STEP_S / 2:
            busy, slow = self._within(self._busy), self._within(self._slow)
            self._pass(STEP_S, 1 if busy else 2, neighbour=busy)
            left -= STEP_S / (2 if busy or slow else 1)
        return self.clock - began

    def _pass(self, seconds: float, computing: int, *, neighbour: bool) -> None:
        self.clock += seconds
        self.own += computing * seconds
        self.everyone += (computing + neighbour) * seconds

    def _within(self, spans: Spans) -> bool:
        return any(begin <= self.clock < end for begin, end in spans)


def found(*machines: Machine) -> list[tuple[dict[str, list[float]], bool]]:
    both = (machine.measure() for machine in machines)
    return [({name: [round(each, 3) for each in times] for name, times in all_.items()}, sure) for all_, sure in both]


UNDISTURBED = ({name: list(times) for name, times in QUIET.items()}, True)


def test_on_a_quiet_machine_the_fewest_rounds_are_enough() -> None:
    machine = Machine()
    assert found(machine) == [UNDISTURBED]
    assert machine.measured == [*QUIET] * FEWEST


@pytest.mark.parametrize("counted", [True, False])
@pytest.mark.parametrize("began", [0.1 * tenths for tenths in range(0, 50, 3)])
def test_a_neighbour_that_is_busy_for_a_second_changes_nothing(began: float, counted: bool) -> None:
    assert found(Machine(busy=[(began, began + 1.0)], counted=counted)) == [UNDISTURBED]


def test_what_was_disturbed_twice_is_measured_again_and_nothing_else() -> None:
    machine = Machine(busy=[(0.85, 1.25), (2.25, 2.65)])  # the layer's runs of two rounds
    assert found(machine) == [UNDISTURBED]
    assert machine.measured[: FEWEST * 3] == [*QUIET] * FEWEST
    assert machine.measured[FEWEST * 3 :] == ["layer"]


@pytest.mark.parametrize("counted", [True, False])
def test_beside_a_neighbour_that_stays_nothing_is_sure_and_soon_given_up(counted: bool) -> None:
    machine = Machine(busy=[(0.0, 1e9)], counted=counted)
    times, certain = machine.measure(limit_s=1.0)
    assert (set(times), certain) == (set(QUIET), False)
    assert times["layer"] == pytest.approx((0.6,), rel=0.01)
    assert machine.measured == [*QUIET]


def test_a_neighbour_that_no_counter_shows_is_found_out_by_the_other_rounds() -> None:
    assert found(Machine(slow=[(0.0, 3.0)])) == [UNDISTURBED]
    lone = Machine(slow=[(0.0, 4.6), (6.2, 1e9)])
    times, certain = lone.measure(limit_s=60.0)
    assert not certain
    assert lone.measured.count("layer") == MOST
    assert times["layer"] == pytest.approx((0.3,), rel=0.01)


def test_who_takes_the_core_that_is_free_while_a_run_is_made_ready_disturbs_nobody() -> None:
    machine = Machine(busy=[(0.0, 0.2)], setup_s=0.2)
    assert found(machine) == [UNDISTURBED]
    assert len(machine.measured) == FEWEST * len(QUIET)


def test_a_slow_device_has_its_fewest_rounds_however_long_they_take() -> None:
    machine = Machine(setup_s=10.0)
    times, certain = machine.measure(limit_s=15.0)
    assert (set(times), certain) == (set(QUIET), True)
    assert machine.measured == [*QUIET] * FEWEST


def test_after_the_limit_no_kind_is_begun_but_what_is_beside_those_that_were() -> None:
    times, _ = Machine(setup_s=10.0).measure(limit_s=5.0)
    assert set(times) == {"q4", "layer"}
    assert Machine().measure(limit_s=0.0) == ({}, False)


def test_long_runs_are_not_repeated() -> None:
    runs = iter([1.0, 0.5])
    assert Watch(2, Machine().look).least(lambda: next(runs), 3) == 1.0


@pytest.mark.parametrize(
    ("times", "quiet", "certain", "least"),
    [
        ((1.0, AGREE, 2.0), (True, True, True), True, 1.0),
        ((1.0, AGREE + 0.01, 2.0), (True, True, True), False, 1.0),
        ((1.0, 2.0, 2.0), (False, True, True), True, 2.0),
        ((1.0, 1.0, 1.0), (True, False, False), False, 1.0),
        ((3.0, 2.0, 4.0), (False, False, False), False, 2.0),
        ((1.0, 1.0), (True, True), False, 1.0),
    ],
)
def test_sure_is_what_two_quiet_rounds_found(
    times: tuple[float, ...], quiet: tuple[bool, ...], certain: bool, least: float
) -> None:
    taken = [Taken((each,), one) for each, one in zip(times, quiet, strict=True)]
    assert (sure(taken), best(taken)) == (certain, (least,))
