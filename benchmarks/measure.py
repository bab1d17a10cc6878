"""Run a command and tell what it cost: CPU seconds, wall seconds, peak memory; keep the cores busy beside it. Shared by
the benchmarks."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Cost:
    """User plus system CPU seconds, wall seconds, and the peak resident memory in bytes, children included."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def run(command: Sequence[str], log: Path, environment: Mapping[str, str] | None = None) -> Cost:
    """Run a command with its output in ``log``; raise ``RuntimeError`` with the log's end where it fails."""
    start = time.perf_counter()
    with open(log, "wb") as file:
        child = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
        )
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-5:])
        raise RuntimeError(f"{' '.join(command)} exited {child.returncode}:\n{end}")
    # Linux counts kibibytes.
    return Cost(usage.ru_utime + usage.ru_stime, time.perf_counter() - start, usage.ru_maxrss * 1024)


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


_NEIGHBOUR = "import os\nparent = os.getppid()\nwhile os.getppid() == parent: sum(range(10000))"  # dies with this one


@contextmanager
def neighbours(count: int, *, own_session: bool = True) -> Iterator[None]:
    """Run so many busy programs meanwhile; in sessions of their own they weigh as much as other users' programs do."""
    command = [sys.executable, "-c", _NEIGHBOUR]
    programs = [subprocess.Popen(command, start_new_session=own_session) for _ in range(count)]
    try:
        time.sleep(0.3)
        yield
    finally:
        for program in programs:
            program.kill()
            program.wait()
