"""Threads that give way to other programs, and come back."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from edgepack_runtimes.gguf.threads import Threads


def run(threads: Threads, free: float, seconds: float, *, step: float = 0.03) -> Iterator[int]:
    """Take steps on a machine with so many free cores for so long; yield the number of threads of each."""
    passed = 0.0
    while passed < seconds:
        used = threads.count
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
    assert used.count(most) * 10 * 0.03 < 0.1 * 200


def test_a_single_thread_stays() -> None:
    assert set(run(Threads(1), free=0.3, seconds=5)) == {1}


def test_they_come_back_when_the_cores_are_free_again() -> None:
    threads = Threads(2)
    list(run(threads, free=1, seconds=100))
    used = list(run(threads, free=2, seconds=10))
    assert used[-1] == 2
    assert used.index(2) * 0.03 <= 8.1


def test_a_moment_without_a_core_is_soon_forgotten() -> None:
    threads = Threads(2)
    list(run(threads, free=1, seconds=0.01, step=0.003))
    used = list(run(threads, free=2, seconds=3))
    assert used.index(2) * 0.03 < 0.7


def test_short_steps_are_judged_together() -> None:
    """A clock that ticks in milliseconds tells nothing of one step of a tiny model."""
    threads = Threads(2)
    for tick in range(5):
        threads.took(0.003, 0.0 if tick % 2 else 0.012)
    assert threads.count == 2


def test_the_cores_are_looked_at_before_the_first_step() -> None:
    assert Threads(4, lambda: 4.0).next() == 4
    assert Threads(4, lambda: 3.8).next() == 4
    assert Threads(4, lambda: 2.1).next() == 2
    assert Threads(4, lambda: 0.0).next() == 1
    assert Threads(4, lambda: None).next() == 4  # where the system does not say


def test_while_the_system_says_that_cores_are_taken_no_step_is_spent_on_a_trial() -> None:
    free = 1.0
    threads = Threads(2, lambda: free)
    used = list(run(threads, free=1, seconds=7, step=0.03))
    assert set(used) == {1} or used[0] == 2
    assert used.count(2) <= 1
    free = 2.0
    used = list(run(threads, free=2, seconds=1, step=0.03))
    assert used.index(2) * 0.03 <= 0.2


def test_they_are_tried_in_the_end_whatever_the_system_says() -> None:
    """Programs of a low priority have every core that nobody wants."""
    threads = Threads(2, lambda: 0.5)
    assert threads.next() == 1
    used = list(run(threads, free=2, seconds=30))
    assert set(used[300:]) == {2}
