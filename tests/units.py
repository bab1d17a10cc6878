"""The systemd units in ``examples``: what they start, what systemd hears of it, and what it makes of the units."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from threading import Thread

_AS_SYSTEMD = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
"""


def values(unit: Path, key: str) -> list[str]:
    """Return what a unit says of a key, its lines put together and its ``%%`` as systemd reads them."""
    lines = unit.read_text("utf-8").replace("\\\n", " ").splitlines()
    return [line.partition("=")[2].replace("%%", "%") for line in lines if line.startswith(f"{key}=")]


def command(unit: Path) -> list[str]:
    """Return the words that a unit starts."""
    (line,) = values(unit, "ExecStart")
    return shlex.split(line)


def with_socket(words: Sequence[str], given: socket.socket) -> list[str]:
    """Return what starts Python with ``words`` and with a socket as systemd passes one: descriptor 3, by ``LISTEN_FDS``
    of the environment, and a variable that names the process itself. ``given`` must be passed on."""
    return [sys.executable, "-c", _AS_SYSTEMD, str(given.fileno()), *words]


def complaints(units: Mapping[str, str], folder: Path) -> list[str]:
    """Return what systemd has to say of units, by their names and texts."""
    for name, text in units.items():
        (folder / name).write_text(text)
    paths = [str(folder / name) for name in units]
    ended = subprocess.run(["systemd-analyze", "verify", *paths], capture_output=True, text=True)
    return [line for line in ended.stderr.splitlines() if any(name in line for name in units)]


class Systemd:
    """Hears the notifications of a service, as systemd does."""

    def __init__(self, socket: socket.socket) -> None:
        self.said: SimpleQueue[str] = SimpleQueue()
        self._socket = socket
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        while word := self._socket.recv(100).decode():
            self.said.put(word)

    def hear(self, word: str, seconds: float = 60) -> None:
        """Wait for a notification. Raises ``queue.Empty`` where nothing is said for so long."""
        while self.said.get(timeout=seconds) != word:
            pass


@contextmanager
def listening(folder: Path) -> Iterator[tuple[Systemd, dict[str, str]]]:
    """Listen as systemd does, with a watchdog of 0.2 s, and say by which variables of the environment."""
    place = str(folder / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard, heard.dup() as saying:
        heard.bind(place)
        yield Systemd(heard), {"NOTIFY_SOCKET": place, "WATCHDOG_USEC": "200000"}
        saying.sendto(b"", place)


def environment(*more: Mapping[str, str]) -> dict[str, str]:
    """Return this process's environment with others' before it."""
    return {name: value for each in (os.environ, *more) for name, value in each.items()}
