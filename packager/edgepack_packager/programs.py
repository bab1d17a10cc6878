"""Programs that a build starts. Each ends with the call that started it: an interrupt leaves none."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Final

from edgepack.isolation import process

# What would change the compiler's answer, and so the bytes: the flags of an engine are those that its facts say.
_DROPPED: Final = ("CC", "CFLAGS", "CMAKE_", "CPATH", "CPPFLAGS", "CXX", "LDFLAGS", "NINJA_STATUS")

_OF_PIP_ALONE: Final = frozenset({"--no-compile", "--yes"})


def pip(python: str, action: str, *options: str) -> list[str] | None:
    """Return the command of pip, or of uv where this Python has no pip, for the packages of an interpreter.

    ``options`` are pip's; uv does without those that it does not know. None where there is neither.
    """
    if importlib.util.find_spec("pip") is not None:
        place = [] if python == sys.executable else ["--python", python]
        return [sys.executable, "-m", "pip", *place, action, "--disable-pip-version-check", *options]
    if uv := shutil.which("uv"):
        return [uv, "pip", action, "--python", python, *(each for each in options if each not in _OF_PIP_ALONE)]
    return None


def to_end(command: Sequence[str], *, environment: Mapping[str, str] | None = None) -> bytes:
    """Run a program and return what it printed on both streams. Raises ``CalledProcessError`` for a failure."""
    lines = bytearray()
    follow(command, lines.extend, environment=environment)
    return bytes(lines)


def follow(
    command: Sequence[str],
    hear: Callable[[bytes], object],
    *,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Run a program, and give each line that it prints to ``hear``, which may raise to end it.

    Raises ``CalledProcessError`` with the last lines, and ``OSError`` where it cannot be started.
    """
    last = bytearray()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
    deferred = _Deferred()
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={**kept, **(environment or {})},
            start_new_session=True,  # a Ctrl-C in the terminal is this process's, which ends the child with all its own
        )
    except BaseException:
        deferred.release()
        raise
    with child:
        try:
            deferred.release()
            assert child.stdout is not None
            for line in child.stdout:
                last += line
                del last[:-4096]
                hear(line)
            child.wait()
        except BaseException:
            process.end(child)
            raise
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command[0], bytes(last))


class _Deferred:
    """Signals that come while a program is started, when it runs already and nobody has it to end it: they are handled
    at ``release``."""

    def __init__(self) -> None:
        self._before: dict[int, Callable[[int, FrameType | None], object]] = {}
        self._heard: list[int] = []
        if threading.current_thread() is threading.main_thread():  # no other handles signals
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if callable(handler := signal.getsignal(number)):
                    self._before[number] = handler
                    signal.signal(number, self._hear)

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._heard.append(number)

    def release(self) -> None:
        """Handle signals as before, and those that came meanwhile. Raises what their handlers raise."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        for number in self._heard:
            self._before[number](number, None)
