"""Cores that other programs left, by what the system counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from edgepack_runtimes.gguf import cores
from edgepack_runtimes.gguf.cores import Cores

TICK = 100


class Machine:
    """A system's counters: four cores, of which this process may use the first two."""

    def __init__(self, place: Path, patch: pytest.MonkeyPatch) -> None:
        self.place, self.time, self.own = place, 0.0, 0.0
        self.ticks = [dict.fromkeys(("user", "nice", "system", "idle", "iowait"), 0) for _ in range(4)]
        patch.setattr(os, "sched_getaffinity", lambda pid: {0, 1}, raising=False)
        patch.setattr(os, "sysconf", lambda name: TICK)
        patch.setattr(cores, "perf_counter", lambda: self.time)
        patch.setattr(cores, "process_time", lambda: self.own)
        self.spend(0)

    def spend(self, seconds: float, own: float = 0.0, **busy: dict[int, float]) -> None:
        """Let time pass; ``busy`` says for each counter how long which cores counted on it."""
        self.time += seconds
        self.own += own
        for kind, by_core in busy.items():
            for core, spent in by_core.items():
                self.ticks[core][kind] += round(spent * TICK)
        lines = [f"cpu{n} {' '.join(map(str, of.values()))} 0 0 0 0 0" for n, of in enumerate(self.ticks)]
        self.place.write_text("\n".join(["cpu 9 9 9 9 9 9 9 9 9 9", *lines, "intr 5", "ctxt 7"]))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path / "stat", monkeypatch)


def test_what_others_use_is_not_free(machine: Machine) -> None:
    look = Cores(str(machine.place))
    machine.spend(1, user={0: 1.0})
    assert look.free() == pytest.approx(1)
    machine.spend(2, user={0: 1.0, 1: 1.5}, system={1: 0.5})
    assert look.free() == pytest.approx(0.5)
    machine.spend(2, idle={0: 2, 1: 2})
    assert look.free() == pytest.approx(2)


def test_this_process_is_no_other(machine: Machine) -> None:
    look = Cores(str(machine.place))
    machine.spend(1, own=1.5, user={0: 0.9, 1: 0.6})
    assert look.free() == pytest.approx(2)


def test_who_gives_way_is_not_counted(machine: Machine) -> None:
    look = Cores(str(machine.place))
    machine.spend(1, nice={0: 1.0, 1: 1.0}, iowait={0: 0.3})
    assert look.free() == pytest.approx(2)


def test_cores_that_this_process_may_not_use_do_not_count(machine: Machine) -> None:
    look = Cores(str(machine.place))
    machine.spend(1, user={2: 1.0, 3: 1.0})
    assert look.free() == pytest.approx(2)


@pytest.mark.parametrize("said", [None, "", "cpu0 what", "cpu0"])
def test_a_system_that_does_not_say_is_no_error(tmp_path: Path, said: str | None) -> None:
    if said is not None:
        (tmp_path / "stat").write_text(said)
    look = Cores(str(tmp_path / "stat"))
    assert look.free() in (None, len(os.sched_getaffinity(0)))
