"""Threads that give way to other programs, and come back: for every engine whose number of them can change."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgepack_runtimes.threads import Threads, Watch, busy_seconds


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


@pytest.mark.parametrize(
    ("most", "free", "count"), [(2, None, 2), (2, 1.9, 2), (2, 1.1, 1), (2, -0.2, 1), (4, 13.0, 4), (4, 3.2, 3)]
)
def test_a_look_before_the_first_step_tells_with_how_many_to_begin(most: int, free: float | None, count: int) -> None:
    assert Threads(most, free).count == count


def test_what_the_look_found_does_not_last() -> None:
    used = list(run(Threads(2, free=1), free=2, seconds=1))
    assert used[0] == 1
    assert used.index(2) * 0.03 < 0.3
    assert set(used[used.index(2) :]) == {2}


def test_a_single_thread_stays() -> None:
    assert set(run(Threads(1, free=0.2), free=0.3, seconds=5)) == {1}


def test_they_come_back_when_the_cores_are_free_again() -> None:
    threads = Threads(2)
    list(run(threads, free=1, seconds=100))
    used = list(run(threads, free=2, seconds=10))
    assert used[-1] == 2
    assert used.index(2) * 0.03 <= 20 * 10 * 0.03 + 0.1  # what the last trial took, at its price


def test_short_steps_are_judged_together() -> None:
    """A clock that ticks in milliseconds tells nothing of one step of a tiny model."""
    threads = Threads(2)
    for tick in range(15):
        threads.took(0.004, 0.0 if tick % 2 else 0.016)
    assert threads.count == 2


def stat(path: Path, *, busy: float, idle: float = 10.0) -> Path:
    """Write a /proc/stat in which all cores together were busy and idle for so many seconds."""
    tick = os.sysconf("SC_CLK_TCK")
    user, nice = int(busy * tick / 2), int(busy * tick) - int(busy * tick / 2)
    path.write_text(f"cpu  {user} {nice} 0 {int(idle * tick)} 77 0 0 0 0 0\ncpu0 1 2 3 4 5 6 7 8 9 10\n")
    return path


def test_busy_is_what_is_not_idle(tmp_path: Path) -> None:
    assert busy_seconds(stat(tmp_path / "stat", busy=12.5)) == 12.5
    assert busy_seconds(tmp_path / "none") is None
    (tmp_path / "stat").write_text("no such system")
    assert busy_seconds(tmp_path / "stat") is None


def test_a_watch_counts_what_others_leave(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 5.0, "cpu": 1.0}
    monkeypatch.setattr("edgepack_runtimes.threads.perf_counter", lambda: clock["wall"])
    monkeypatch.setattr("edgepack_runtimes.threads.process_time", lambda: clock["cpu"])
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    watch = Watch(stat(tmp_path / "stat", busy=100.0))
    clock |= {"wall": 5.05, "cpu": 1.05}
    assert watch.free() is None  # too early
    clock |= {"wall": 7.0, "cpu": 3.0}
    stat(tmp_path / "stat", busy=105.0)  # in 2 s: 2 s of this process and 3 s of others
    assert watch.free() == pytest.approx(2.5)
    (tmp_path / "stat").unlink()
    assert watch.free() is None
