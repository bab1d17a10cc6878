"""Run a command and tell what it cost: CPU seconds, wall seconds, peak memory. Shared by the benchmarks."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Mapping, Sequence
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
