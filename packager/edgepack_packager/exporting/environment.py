"""The environment of an exporter: a Python of its own, made once of a lock file, kept in the state folder.

An exporter's packages exclude each other's and edgepack's own. pip fetches them, so that a user's indexes, mirrors and
proxies hold, and takes no file but those whose digests the lock has; nothing is compiled.
"""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
import sys
import venv
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Final

from edgepack.bundle import work
from edgepack.device.memory import human
from edgepack.device.state import state_folder
from edgepack.errors import BuildError, OutputExistsError, SourceError, UsageError
from edgepack.isolation.process import words
from edgepack_packager import programs
from edgepack_packager.progress import Progress

OFFLINE: Final = "HF_HUB_OFFLINE"
"""The variable that switches the network off: the hub's client's own."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The packages of an exporter, as pip reads them; ``download`` and ``disk`` are bytes, measured on x86-64 Linux."""

    exporter: str
    download: int
    disk: int

    @property
    def data(self) -> bytes:
        """The file ``locks/EXPORTER.txt``."""
        return files(__package__).joinpath("locks", f"{self.exporter}.txt").read_bytes()

    @property
    def folder(self) -> Path:
        """Where the environment of this lock, this Python and this machine is kept."""
        facts = (sys.version, platform.machine(), sys.platform, sys.base_prefix)
        key = hashlib.sha256(self.data + "\n".join(facts).encode()).hexdigest()[:16]
        return state_folder() / "exporters" / f"{self.exporter}-{key}"

    @property
    def python(self) -> Path:
        """The environment's interpreter, which is there once the environment is whole."""
        return self.folder / "bin" / "python"


def refuse(lock: Lock) -> None:
    """Refuse what no download could help, where the environment is yet to be made.

    Raises ``UsageError`` where the lock has no wheels for this Python, ``SourceError`` where the network is switched
    off.
    """
    if lock.python.exists():
        return
    linux = sys.platform == "linux" and platform.machine() == "x86_64" and sys.version_info[:2] == (3, 11)
    if not linux and not (sys.platform == "darwin" and platform.machine() == "arm64"):
        raise UsageError(
            f"--exporter {lock.exporter} has no packages locked for Python {platform.python_version()} on "
            f"{sys.platform} and {platform.machine()}.",
            hint="Build with Python 3.11 on x86-64 Linux, or on macOS (Apple Silicon); the bundle runs anywhere.",
        )
    if os.environ.get(OFFLINE, "").upper() in ("1", "ON", "YES", "TRUE"):
        raise SourceError(
            f"The network is switched off by {OFFLINE}, and the environment of {lock.exporter} is yet to be made.",
            hint=f"Let one build make it, {human(lock.download)} to download; it is then kept in {lock.folder.parent}.",
        )


def ready(lock: Lock, progress: Progress) -> Path:
    """Return the interpreter of the environment, which is made where it is not there yet.

    It gets its name once it is whole; one that another build has made meanwhile is as good. Raises ``SourceError``
    where pip is missing or cannot fetch the packages, and ``BuildError`` where the state folder cannot be written.
    """
    if lock.python.exists():
        return lock.python
    refuse(lock)
    told = f"{human(lock.download)} to download, {human(lock.disk)} on the disk"
    progress.warn(f"The environment of {lock.exporter} is made once, and kept: {told}, in {lock.folder.parent}.")
    progress.stage(f"Making the environment of {lock.exporter}", 1)
    with work.folder(lock.folder) as scratch:
        made = scratch / "environment"
        venv.create(made, symlinks=True, with_pip=False)
        requirements = scratch / "lock.txt"
        requirements.write_bytes(lock.data)
        _install(lock.exporter, made / "bin" / "python", requirements)
        with suppress(OutputExistsError):
            work.publish(made, lock.folder)
    progress.advance()
    return lock.python


def _install(exporter: str, python: Path, requirements: Path) -> None:
    asked = ["--quiet", "--no-compile", "--no-deps", "--only-binary", ":all:", "--require-hashes"]
    command = programs.pip(str(python), "install", *asked, "-r", str(requirements))
    if command is None:
        raise SourceError("This Python has neither pip nor uv.", hint="Install one: python -m ensurepip")
    try:
        programs.to_end(command)
    except subprocess.CalledProcessError as error:
        raise SourceError(
            f"pip cannot make the environment of {exporter}{words(error.output)}.",
            hint="On Linux the lock has a torch without CUDA, which PyTorch's own index has: let pip know of it, "
            "with --extra-index-url in its configuration.",
        ) from None
    except OSError as error:
        raise BuildError(f"pip could not be started: {error.strerror}.") from None
