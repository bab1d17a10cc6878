"""The bandwidth: beside a program in C, and what becomes of it beside other programs."""

from __future__ import annotations

import shutil
import subprocess
from itertools import count
from pathlib import Path
from statistics import median

import pytest

from edgepack.device.neighbours import Look
from edgepack.measuring import bandwidth
from edgepack.measuring.bandwidth import last_level_cache, read_bandwidth

STREAM = Path(__file__).with_name("stream.c")


@pytest.mark.skipif(shutil.which("gcc") is None, reason="there is no compiler")
@pytest.mark.parametrize("threads", [1, 2])
def test_it_is_as_high_as_that_of_a_program_in_c(tmp_path: Path, threads: int) -> None:
    program = tmp_path / "stream"
    subprocess.run(["gcc", "-O3", "-march=native", "-ffast-math", "-pthread", STREAM, "-o", program], check=True)
    if read_bandwidth(threads, repeats=1) is None:
        pytest.skip("other programs are busy")
    ratios = []
    for _ in range(5):  # in turns, since the machine is not the same from one second to the next
        ours = read_bandwidth(threads)
        if ours is None:
            pytest.skip("other programs are busy")
        said = subprocess.run([program, str(threads)], capture_output=True, text=True, check=True).stdout
        ratios.append(ours / max(float(line.split()[1]) for line in said.splitlines()))
    assert median(ratios) >= 0.97


def test_it_is_refused_where_others_are_always_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = count()
    monkeypatch.setattr(bandwidth, "look", lambda: Look(float(next(seconds)), 0.0, float(next(seconds))))
    monkeypatch.setattr(bandwidth, "BUFFER", 1 << 16)
    monkeypatch.setattr(bandwidth, "last_level_cache", lambda: 0)
    assert read_bandwidth(1, repeats=1) is None
    assert next(seconds) == 4 * bandwidth.TRIES  # each try looks twice


def test_the_largest_cache_counts(tmp_path: Path) -> None:
    caches = tmp_path / "sys/devices/system/cpu/cpu0/cache"
    for index, size in enumerate(["32K\n", "1M\n", "512K\n", "odd\n", ""]):
        (caches / f"index{index}").mkdir(parents=True)
        (caches / f"index{index}" / "size").write_text(size)
    assert last_level_cache(tmp_path) == 1 << 20
    assert last_level_cache(tmp_path / "elsewhere") == 0
