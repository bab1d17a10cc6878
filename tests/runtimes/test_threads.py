"""Threads that give way to other programs, and come back: for every engine whose number of them can change."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from edgepack.device.neighbours import Look
from edgepack_runtimes import threads as module
from edgepack_runtimes.threads import Threads, Watch


def run(threads: Threads, free: float, seconds: float, *, step: float = 0.03) -> Iterator[int]:
    """Take steps on a machine with so many free cores for so long; yield the number of threads of each."""
    passed = 0.0
    while passed < seconds:
        used = threads.next()
        wall = step if used <= free else 10 * step  # threads that wait for one without a core
        threads.took(wall, min(used, free) * wall)
        passed += wall
        yield used


def test_on_free_cores_all_are_used() -> None:
    assert set(run(Threads(4), free=4, seconds=30)) == {4}
    assert set(run(Threads(4), free=3.8, seconds=30)) == {4}  # what the system itself does


@pytest.mark.parametrize("most", [2, 4, 16])
@pytest.mark.parametrize("taken", [0.5, 1, 1.5])
def test_where_cores_are_taken_the_threads_are_fewer(most: int, taken: float) -> None:
    used = list(run(Threads(most), free=most - taken, seconds=200))
    assert used[:2] == [most, max(1, int(most - taken))]
    assert used.count(most) * 10 * 0.03 < 0.06 * 200


def test_threads_that_sleep_where_they_wait_are_not_taken_for_disturbed() -> None:
    sleepers = Threads(4, asleep=0.1)
    assert set(run(sleepers, free=3.4, seconds=30)) == {4}
    assert set(run(Threads(4), free=3.4, seconds=1)) == {4, 3}
    assert set(run(sleepers, free=3.2, seconds=1)) == {4, 3}


def test_threads_that_sleep_are_tried_soon_whatever_the_system_says() -> None:
    used = list(run(Threads(2, lambda: 0.5, asleep=0.1), free=2, seconds=2))
    assert used[0] == 1
    assert used.index(2) * 0.03 < 0.2
    assert set(used[used.index(2) :]) == {2}


@pytest.mark.parametrize(("free", "counts"), [(2.0, {2}), (1.8, {2}), (1.2, {1, 2}), (None, {1, 2})])
def test_threads_that_sleep_for_long_stay_as_long_as_the_system_says_that_the_cores_are_free(
    free: float | None, counts: set[int]
) -> None:
    threads = Threads(2, lambda: free, asleep=0.1)
    assert set(run(threads, free=1.2, seconds=30)) == counts


def test_a_single_thread_stays() -> None:
    assert set(run(Threads(1, lambda: 0.0), free=0.3, seconds=5)) == {1}


def test_they_come_back_when_the_cores_are_free_again() -> None:
    threads = Threads(2)
    list(run(threads, free=1, seconds=100))
    used = list(run(threads, free=2, seconds=10))
    assert used[-1] == 2
    assert used.index(2) * 0.03 <= 24 * 0.3 + 0.1  # what the last trial took, at its price


def test_a_moment_without_a_core_is_soon_forgotten() -> None:
    threads = Threads(2)
    list(run(threads, free=1, seconds=0.2, step=0.003))
    for _ in range(3):  # and no such moment makes the next one dearer
        used = list(run(threads, free=2, seconds=2))
        assert used[0] == 1
        assert used.index(2) * 0.03 < 0.5
        assert set(used[used.index(2) :]) == {2}
        list(run(threads, free=1, seconds=0.2, step=0.003))


def test_a_moment_that_is_part_of_many_steps_is_none() -> None:
    threads = Threads(2)
    for step in range(100):
        threads.took(0.01, 0.01 if step % 10 < 2 else 0.02)  # a fifth of the time another has a core
    assert threads.count == 2


def test_short_steps_are_judged_together() -> None:
    """A clock that ticks in milliseconds tells nothing of one step of a tiny model."""
    threads = Threads(2)
    for tick in range(40):
        threads.took(0.004, 0.0 if tick % 2 else 0.016)
    assert threads.count == 2


@pytest.mark.parametrize(
    ("most", "free", "count"), [(2, None, 2), (2, 1.9, 2), (2, 1.1, 1), (2, -0.2, 1), (4, 13.0, 4), (4, 3.2, 3)]
)
def test_the_cores_are_looked_at_before_the_first_step(most: int, free: float | None, count: int) -> None:
    assert Threads(most, lambda: free).next() == count


def test_while_the_system_says_that_cores_are_taken_no_step_is_spent_on_a_trial() -> None:
    free = 1.0
    threads = Threads(2, lambda: free)
    assert set(run(threads, free=1, seconds=7)) == {1}
    free = 2.0
    used = list(run(threads, free=2, seconds=1))
    assert used.index(2) * 0.03 <= 0.2


def test_they_are_tried_in_the_end_whatever_the_system_says() -> None:
    """Programs of a low priority may have every core that nobody wants."""
    used = list(run(Threads(2, lambda: 0.5), free=2, seconds=30))
    assert used[0] == 1
    assert set(used[300:]) == {2}


class Machine:
    """A system's clocks, as the next look finds them."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = Look(5.0, 1.0, 100.0)
        patch.setattr(module, "look", lambda: self.now)
        patch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 5, 6}, raising=False)

    def spend(self, seconds: float, own: float, others: float | None) -> None:
        everyone = None if others is None or self.now.everyone is None else self.now.everyone + own + others
        self.now = Look(self.now.clock + seconds, self.now.own + own, everyone)


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_a_watch_counts_what_others_leave_since_it_was_last_asked(machine: Machine) -> None:
    watch = Watch()
    machine.spend(2, own=2, others=3)
    assert watch.free() == pytest.approx(2.5)
    machine.spend(1, own=4, others=0)
    assert watch.free() == pytest.approx(4)


def test_a_watch_waits_until_there_is_something_to_count(machine: Machine) -> None:
    watch = Watch()
    machine.spend(0.05, own=0, others=0.05)
    assert watch.free() is None
    machine.spend(0.15, own=0, others=0.15)
    assert watch.free() == pytest.approx(3)


def test_a_system_that_does_not_tell_is_no_error(machine: Machine) -> None:
    watch = Watch()
    machine.spend(1, own=1, others=None)
    assert watch.free() is None
