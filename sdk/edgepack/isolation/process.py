"""Interpreters of their own for native code, so that a crash ends them and not the program.

This is the parent's side: how such a child is started and ended, and how its end is put into words; and where a child
that is only asked once puts its answer.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from threading import Thread
from typing import IO, Any, BinaryIO

from edgepack.errors import EngineCrashedError, EngineTimeoutError

_KEPT = 4096
_LINES = 3
_LAST_WORDS_S = 1.0
_MEANINGS = {
    "SIGILL": "used instructions that this processor lacks (SIGILL)",
    "SIGKILL": "was killed (SIGKILL), as a system does that runs out of memory",
}


def can_start() -> bool:
    """Say whether this program can start an interpreter. A frozen one would start itself."""
    return bool(sys.executable) and not getattr(sys, "frozen", False)


def start(module: str, *arguments: str, stdin: Any, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
    """Start a module as a program that imports what this one can. Raises ``OSError``."""
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        env={**os.environ, "PYTHONPATH": path},
        start_new_session=True,  # a Ctrl-C in the terminal is the parent's
    )


def end(child: subprocess.Popen[bytes]) -> None:
    """End a child at once, with all that it started, and wait for it."""
    if child.returncode is None:
        with suppress(ProcessLookupError, PermissionError):
            if os.name == "posix":
                os.killpg(child.pid, signal.SIGKILL)  # it leads a session of its own
            else:
                child.kill()
    child.wait()


def run(what: str, module: str, *arguments: str, given: bytes = b"", timeout_s: float) -> bytes:
    """Run a module as a program with ``given`` as its input, and return its output.

    Raises ``EngineCrashedError`` or ``EngineTimeoutError`` that begins with ``what`` ("The probe of gguf"), and
    ``OSError`` where it cannot be started.
    """
    pipe = subprocess.PIPE
    with start(module, *arguments, stdin=pipe, stdout=pipe, stderr=pipe) as child:
        try:
            output, errors = child.communicate(given, timeout_s)
        except subprocess.TimeoutExpired:
            end(child)
            raise EngineTimeoutError(f"{what} did not end within {timeout_s:g} s.") from None
        except BaseException:
            end(child)
            raise
    if child.returncode:
        raise EngineCrashedError(f"{what} {ending(child.returncode)}{words(errors)}.")
    return output


def answering() -> BinaryIO:
    """In the child: return standard output for the answer, into which nothing that an engine prints can get."""
    output = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    return output


def ending(code: int) -> str:
    """Return what a process did to end with this exit code, negative for a signal: "was ended by SIGSEGV"."""
    if code >= 0:
        return f"ended by itself with exit code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:  # a real-time signal
        name = f"signal {-code}"
    return _MEANINGS.get(name, f"was ended by {name}")


def words(output: bytes) -> str:
    """Return ": " and the last lines of an output, "" where there are none."""
    lines = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()]
    return f": {'; '.join(lines[-_LINES:])}".rstrip(".") if lines else ""


class LastWords:
    """What a child prints, of which the end is kept. Reading it keeps the pipe from filling up."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._kept = bytearray()
        self._thread = Thread(target=_read, args=(stream, self._kept), name="edgepack-last-words", daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        """Return the words of a child that has ended, as ``words`` does."""
        self._thread.join(_LAST_WORDS_S)  # what the child started may still hold the pipe
        return words(bytes(self._kept))


def _read(stream: IO[bytes], kept: bytearray) -> None:
    with stream:
        while data := os.read(stream.fileno(), _KEPT):
            kept += data
            del kept[:-_KEPT]
