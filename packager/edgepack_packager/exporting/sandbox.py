"""A program that runs in an exporter's environment: it reads one folder, writes into another, and is then gone.

What it reads is a stranger's, and what it writes is read as a stranger's. It has no network where the system can take
it away without root, no environment of this process, limits of memory and of file size, and a time to end in.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from stat import S_ISREG

import msgspec

from edgepack.errors import BuildError
from edgepack.isolation import process

TIMEOUT_S = 3600.0
_KEPT = ("LANG", "LC_ALL", "PATH", "SYSTEMROOT", "TZ")
_GIB = 1 << 30
_NEXT = "docs/exporters.md has the architectures that were tried. Report others, with the config.json."


class Job(msgspec.Struct, frozen=True):
    """What the program is told: the folder of the checkpoint, the folder to write into, token ids, and its limits.

    ``memory`` and ``largest`` are bytes: of the address space, and of a file.
    """

    source: str
    out: str
    ids: list[int]
    threads: int
    memory: int
    largest: int


def job(source: Path, out: Path, ids: list[int], threads: int, weights: int) -> Job:
    """Return a job whose limits follow from the bytes that the ``weights`` take in float32.

    A graph is traced, folded and written with several copies of its weights at a time; torch takes some room by itself.
    """
    return Job(
        str(source.absolute()),
        str(out.absolute()),
        ids,
        threads,
        memory=16 * _GIB + 12 * weights,
        largest=_GIB + 4 * weights,
    )


@functools.cache
def without_network() -> tuple[str, ...]:
    """Return what a command begins with so that it has no network; nothing where this system has no such thing."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = (unshare, "--net", "--map-root-user")
    found = subprocess.run([*command, "true"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    return command if found.returncode == 0 else ()


def run(what: str, python: Path, script: Path, job: Job, scratch: Path) -> None:
    """Run a script in an environment to its end. Raises ``BuildError``, which begins with ``what``, where it fails."""
    home = scratch.absolute() / "home"
    home.mkdir()
    given = scratch.absolute() / "job.json"
    given.write_bytes(msgspec.json.encode(job))
    command = [*without_network(), str(python), "-I", "-B", str(script), str(given)]
    pipe = subprocess.PIPE
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=pipe,
            stderr=subprocess.STDOUT,
            env=_environment(home),
            cwd=home,
            start_new_session=True,
        )
    except OSError as error:
        raise BuildError(f"{what} could not be started: {error.strerror}.", hint=_NEXT) from None
    with child:
        try:
            output, _ = child.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.end(child)
            raise BuildError(f"{what} did not end within {TIMEOUT_S:g} s.", hint=_NEXT) from None
        except BaseException:
            process.end(child)
            raise
    if child.returncode:
        raise BuildError(f"{what} {process.ending(child.returncode)}{process.words(output)}.", hint=_NEXT)


def written(folder: Path, largest: Mapping[str, int]) -> dict[str, Path]:
    """Return what a program wrote, by name: each of these files, of that many bytes at most, and nothing else.

    Raises ``BuildError`` for a file that is missing, too large or no plain file, and for any other name.
    """
    found = {entry.name: entry for entry in os.scandir(folder)}
    for name in largest:
        if name not in found:
            raise _odd(f"wrote no {name}")
    for name, entry in found.items():
        status = entry.stat(follow_symlinks=False)
        if name not in largest:
            raise _odd(f"wrote {name[:80]!r}, which is no part of a variant")
        if not S_ISREG(status.st_mode):
            raise _odd(f"made {name}, which is not a plain file")
        if status.st_size > largest[name]:
            raise _odd(f"wrote {status.st_size} bytes as {name}, more than such a model can have")
    return {name: Path(entry.path) for name, entry in found.items()}


def _odd(what: str) -> BuildError:
    return BuildError(f"The exporter {what}.", hint=_NEXT)


def _environment(home: Path) -> dict[str, str]:
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    places = dict.fromkeys(("HOME", "TMPDIR", "HF_HOME", "XDG_CACHE_HOME"), str(home))
    switches = dict.fromkeys(
        ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_DISABLE_TELEMETRY", "ORT_DISABLE_TELEMETRY", "TQDM_DISABLE"),
        "1",
    )
    return kept | places | switches
