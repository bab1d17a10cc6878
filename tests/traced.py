"""A function under strace, which records its file-system calls, or lets one of them fail or end the process."""

from __future__ import annotations

import ctypes
import os
import re
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from limited import Ended, in_child

WRITING = ("openat", "mkdir", "write", "pwrite64", "fallocate", "ftruncate", "fsync", "rename", "link", "linkat",
           "unlink", "unlinkat", "rmdir", "fchmod")  # fmt: skip
READING = ("read", "pread64", "newfstatat", "getdents64", "lseek", "close")
PR_SET_PTRACER = 0x59616D61


@dataclass(frozen=True)
class Call:
    """A line of a record: the process's thread, the system call, its arguments, and what it returned."""

    thread: int
    name: str
    arguments: str
    returned: str


def traced(work: Callable[[], object], log: Path, inject: str | None = None) -> Callable[[], object]:
    """Return the function with each of its file-system calls written to ``log``, and with a fault as strace says it:
    "fsync:error=EIO:when=3". It is to run in a process of its own."""

    def run() -> object:
        ctypes.CDLL(None).prctl(PR_SET_PTRACER, -1, 0, 0, 0)  # a child may look
        command = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-p", str(os.getpid())]
        command += ["-e", f"trace={','.join((*WRITING, *READING))}"]
        command += ["-e", f"inject={inject}"] if inject else []
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as strace:
            try:
                while not _is_watched() and strace.poll() is None:
                    time.sleep(0.001)
                assert strace.poll() is None
                return work()
            finally:
                strace.send_signal(signal.SIGINT)
                try:
                    strace.wait(5)
                except subprocess.TimeoutExpired:  # it waits for this process, which waits for it
                    strace.kill()

    return run


def _is_watched() -> bool:
    try:
        return "TracerPid:\t0" not in Path("/proc/self/status").read_text()
    except OSError:  # the fault has met this call
        return True


def record(log: Path) -> list[Call]:
    """Return the calls of a record that ended, in the order in which they did."""
    calls, begun = [], {}
    for line in log.read_text(errors="replace").splitlines():
        thread, _, said = line.partition(" ")
        said = said.strip()
        if said.endswith("<unfinished ...>"):
            begun[thread] = said.removesuffix("<unfinished ...>")
            continue
        if resumed := re.fullmatch(r"<\.\.\. \w+ resumed>(.*)", said):
            said = begun.pop(thread) + resumed[1]
        if found := re.fullmatch(r"(\w+)\((.*)\) += (.*)", said):
            calls.append(Call(int(thread), found[1], found[2], found[3]))
    return calls


def counts(calls: list[Call]) -> dict[str, int]:
    """Return how often each system call was made by the thread that made the most of it."""
    by_thread = Counter((call.name, call.thread) for call in calls)
    return {name: max(n for (each, _), n in by_thread.items() if each == name) for name, _ in by_thread}


def run_traced(work: Callable[[], object], log: Path, inject: str | None = None) -> Ended:
    """Run a function under strace in a child. Skips the test where strace cannot do that."""
    if not shutil.which("strace"):
        pytest.skip("needs strace")
    ended = in_child(traced(work, log, inject), seconds=120)
    if ended.kind == "raw AssertionError":
        pytest.skip("strace may not look at a process here")
    return ended
