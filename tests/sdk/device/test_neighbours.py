"""What other programs take of the processor: from texts of /proc/stat, and once from the one that is there."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgepack.device.neighbours import Look, disturbs, look, spent, taken

STAT = """\
cpu  60 20 90 900 70 3 4 5 6 7
cpu0 10 20 30 400 50 1 2 3 4 5
cpu1 50 0 60 500 20 2 2 2 2 2
intr 12345 0 9
"""


@pytest.mark.parametrize(("cpus", "ticks"), [({0}, 66), ({1}, 116), ({0, 1}, 182), ({1, 7}, 116)])
def test_waiting_is_not_computing_and_guests_are_not_counted_twice(cpus: set[int], ticks: int) -> None:
    assert spent(STAT, cpus) == ticks


@pytest.mark.parametrize("text", ["", "cpu 1 2 3 4 5 6 7 8\n", "cpu0 1 2 x 4 5 6 7 8\n", "cpu0 1 2\n"])
def test_a_text_that_does_not_say_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"no such CPU|invalid literal|not enough values"):
        spent(text, {0})


def test_what_this_process_took_is_not_its_neighbours() -> None:
    assert taken(Look(10.0, 1.0, 100.0), Look(12.0, 4.0, 104.0)) == pytest.approx(0.5)
    assert taken(Look(10.0, 1.0, 100.0), Look(12.0, 4.0, 102.9)) == 0.0
    assert taken(Look(10.0, 1.0, None), Look(12.0, 4.0, 104.0)) is None
    assert taken(Look(10.0, 1.0, 100.0), Look(10.0, 1.0, 100.0)) is None


def test_the_limit_is_a_tenth_of_each_core() -> None:
    assert not disturbs(None, 2)
    assert not disturbs(0.2, 2)
    assert disturbs(0.21, 2)
    assert disturbs(0.2, 1)


def test_a_system_that_does_not_say_is_no_error(tmp_path: Path) -> None:
    assert look(tmp_path).everyone is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/stat").write_text("nothing of use\n")
    assert look(tmp_path).everyone is None


def test_what_this_process_computes_is_found_in_its_system() -> None:
    before = look()
    if before.everyone is None:
        pytest.skip("this system does not say what its processors do")
    while look().own < before.own + 0.2:
        pass
    after = look()
    assert after.everyone is not None
    assert after.everyone - before.everyone >= 0.15  # the clock of the ticks is coarse
