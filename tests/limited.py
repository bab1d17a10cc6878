"""Children with limits of time, memory and stack, in which what comes from outside may do its worst."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import resource
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from edgepack.errors import EdgepackError


@dataclass(frozen=True)
class Ended:
    """How a child ended: ``kind`` is "answer", the name of an error of edgepack, "raw NAME" for another exception,
    "signal NAME", or "no end" where the time ran out; ``text`` is what it said."""

    kind: str
    text: str

    @property
    def clean(self) -> bool:
        """Whether it gave an answer, or an error of edgepack."""
        return " " not in self.kind


def in_child(work: Callable[[], object], *, seconds: float = 30, gigabytes: float = 6) -> Ended:
    """Run ``work`` in a forked child with limits of time and of address space. Call it before an engine is loaded."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _limited(work, write, gigabytes)
    os.close(write)
    status = _status(child, time.monotonic() + seconds)
    with open(read, encoding="utf-8", errors="replace") as pipe:
        kind, _, text = pipe.read().partition("\t")
    if status is None:
        return Ended("no end", f"after {seconds:g} s")
    if os.WIFSIGNALED(status):
        return Ended(f"signal {signal.Signals(os.WTERMSIG(status)).name}", "")
    return Ended(kind, text)


def _status(child: int, end: float) -> int | None:
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status
        time.sleep(0.002)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def _limited(work: Callable[[], object], write: int, gigabytes: float) -> NoReturn:
    try:
        os.setsid()
        faulthandler.disable()  # pytest's, which would print what a test expects
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)
        silence = os.open(os.devnull, os.O_RDWR)
        for stream in (1, 2):
            os.dup2(silence, stream)
        try:
            said = f"answer\t{work()}"
        except EdgepackError as error:
            said = f"{type(error).__name__}\t{error}"
        except BaseException as error:
            said = f"raw {type(error).__name__}\t{error}"
        os.write(write, said.encode("utf-8", "backslashreplace")[:4000])
    finally:
        os._exit(0)
