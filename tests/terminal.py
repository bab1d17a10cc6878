"""A program in a terminal of its own, as a user has one: what is typed, what shows, a window that is resized."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_CONTROL = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]")
_ASKED = b"\x1b[6n"
_PATIENCE_S = 60


class Terminal:
    """Starts a program with standard input in a new terminal of 24 lines, and its other streams too or in a pipe.

    It answers what a terminal is asked, its cursor's place, and reads what the program writes when ``until`` waits.
    """

    def __init__(
        self, words: Sequence[str], env: Mapping[str, str | None], columns: int = 80, pipe: bool = False
    ) -> None:
        """``env`` goes before this process's environment, None takes a name out; ``pipe`` has standard output piped."""
        self.shown = b""
        self._at = 0
        self._ours, its = pty.openpty()
        self._its = os.dup(its)  # kept, so that the settings of the terminal can be read when the program has ended
        self.resize(columns)
        merged = {**os.environ, "COLUMNS": None, "LINES": None, **env}
        self.process = subprocess.Popen(
            words,
            stdin=its,
            stdout=subprocess.PIPE if pipe else its,
            stderr=its,
            env={name: value for name, value in merged.items() if value is not None},
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that its keys send signals
        )
        os.close(its)

    def until(self, *marks: str) -> str:
        """Read on until a mark shows, controls left out, and return what did; "\\x1b..." is looked for as it is."""
        while True:
            new = self.shown[self._at :]
            for mark in marks:
                if mark in (new.decode(errors="replace") if mark.startswith("\x1b") else _text(new)):
                    self._at = len(self.shown)
                    return _text(new)
            if not self._read():
                raise AssertionError(f"none of {marks} showed in: {self.shown!r}")

    def type(self, text: str) -> None:
        """Press keys; Ctrl-C once the program waits: between a prompt and the call that reads, Python hears of a signal
        at the next key alone."""
        if "\x03" in text:
            self._rest()
        os.write(self._ours, text.encode())

    def _rest(self) -> None:
        state = Path(f"/proc/{self.process.pid}/stat")
        for _ in range(_PATIENCE_S * 100):
            if not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "S":  # proc_pid_stat(5)
                return
            time.sleep(0.01)

    def resize(self, columns: int) -> None:
        """Make the window as wide; the system tells the program of it."""
        fcntl.ioctl(self._ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))

    @property
    def cooked(self) -> bool:
        """Whether the terminal edits lines and shows what is typed, as a shell finds it."""
        flags = termios.ICANON | termios.ECHO
        return termios.tcgetattr(self._its)[3] & flags == flags

    def end(self) -> tuple[int, str]:
        """Wait for the program's end; return its exit code and all that showed, controls left out."""
        while self.process.poll() is None:
            self._read(0.1)
        while self._read(0):
            pass
        return self.process.returncode, _text(self.shown)

    def close(self) -> None:
        """End what still runs."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._ours)
        os.close(self._its)

    def _read(self, seconds: float = _PATIENCE_S) -> bool:
        ready, _, _ = select.select([self._ours], [], [], seconds)
        if not ready:
            return False
        data = os.read(self._ours, 65536)
        self.shown += data
        for _ in range(data.count(_ASKED)):
            os.write(self._ours, b"\x1b[1;1R")
        return bool(data)


def _text(shown: bytes) -> str:
    return _CONTROL.sub(b"", shown).decode(errors="replace").replace("\r\n", "\n")
