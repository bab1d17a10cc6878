"""What edgepack remembers from one program to the next: findings that hold as long as their circumstances do.

Whatever is wrong with the folder, nothing is remembered and nothing fails: a finding is then found again.
"""

from __future__ import annotations

import errno
import hashlib
import os
import platform
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

import msgspec

from edgepack.bundle.writing import write_atomically

T = TypeVar("T")

_LARGEST = 1 << 20
_TROUBLE = (OSError, RuntimeError, ValueError)
PREFERENCE = "EDGEPACK_ENGINE_"
"""The beginning of a variable that names the engine for a runtime, as EDGEPACK_ENGINE_GGUF=xllamacpp."""

# What decides which library a loader takes, and which accelerators a driver shows.
_VARIABLES = ("CUDA_", "DYLD_", PREFERENCE, "LD_")


def state_folder() -> Path:
    """Return where this user's edgepack remembers things: ``EDGEPACK_STATE``, else the system's place for that.

    Raises ``RuntimeError`` for a user without a home.
    """
    if own := os.environ.get("EDGEPACK_STATE"):
        return Path(own)
    system = platform.system()
    if system == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "edgepack"
    if system == "Darwin":
        return Path("~/Library/Application Support/edgepack").expanduser()
    return Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser() / "edgepack"


def findings() -> Path:
    """Return the folder of what ``remember`` keeps. Raises as ``state_folder``."""
    return state_folder() / "findings"


def read_kept(place: Path) -> bytes:
    """Return a file of the state folder. Raises ``OSError`` where it is not there, no file, or too large to be one."""
    status = place.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        raise OSError(errno.EINVAL, "it is not what edgepack wrote", str(place))
    return place.read_bytes()


class _Finding(msgspec.Struct, frozen=True):
    """A file of the state folder: JSON. ``digest`` is the answer's: a disk or a hand may have changed it."""

    circumstances: str
    digest: str
    answer: msgspec.Raw


def circumstances(*facts: str) -> str:
    """Return a digest of the facts and of all that an engine's verdict depends on besides itself.

    That is the interpreter, every distribution that it can import, the kernel, the processor, NVIDIA's driver, and
    the variables of the environment that choose libraries and devices.
    """
    whole = hashlib.sha256()
    for fact in (*facts, *_surroundings()):
        whole.update(fact.encode(errors="surrogateescape") + b"\0")
    return whole.hexdigest()


def recall(question: str, circumstances: str, kind: type[T]) -> T | None:
    """Return the answer of that kind that was found to a question under the same circumstances, None without one."""
    with suppress(*_TROUBLE):
        finding = msgspec.json.decode(read_kept(_place(question)), type=_Finding)
        if (finding.circumstances, finding.digest) == (circumstances, _digest(finding.answer)):
            return msgspec.json.decode(finding.answer, type=kind)
    return None


def remember(question: str, circumstances: str, answer: bytes) -> None:
    """Keep the answer to a question, JSON, instead of the one that was kept before."""
    with suppress(*_TROUBLE):
        place = _place(question)
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, msgspec.json.encode(_Finding(circumstances, _digest(answer), msgspec.Raw(answer))))


def preferred(runtime: str) -> str | None:
    """Return the engine that the user wants a runtime to have: by the environment, else as ``prefer`` kept it."""
    if named := os.environ.get(PREFERENCE + runtime.upper()):
        return named
    return _preferences().get(runtime)


def prefer(runtime: str, engine: str | None) -> None:
    """Keep which engine the user wants a runtime to have in this environment of Python, None for the best.

    Raises ``OSError``, or ``RuntimeError`` for a user without a home.
    """
    place = _preferences_place()
    kept = {name: other for name, other in _preferences().items() if name != runtime}
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, msgspec.json.encode(kept | ({} if engine is None else {runtime: engine})))


def _preferences() -> dict[str, str]:
    with suppress(*_TROUBLE):
        return msgspec.json.decode(read_kept(_preferences_place()), type=dict[str, str])
    return {}


def _preferences_place() -> Path:
    name = hashlib.sha256(sys.prefix.encode(errors="surrogateescape")).hexdigest()
    return state_folder() / "engines" / f"{name[:32]}.json"


def stamps(paths: Iterable[Path]) -> str:
    """Return the sizes and times of files, a line each; of one that is not there, its name."""
    lines = []
    for path in sorted(paths):
        facts = ""
        with suppress(OSError):
            status = path.stat()
            facts = f" {status.st_size} {status.st_mtime_ns}"
        lines.append(f"{path}{facts}")
    return "\n".join(lines)


def _digest(answer: bytes | msgspec.Raw) -> str:
    return hashlib.sha256(answer).hexdigest()


def _place(question: str) -> Path:
    # One file for each question and environment, so that an upgrade replaces what was known before it.
    name = hashlib.sha256(f"{question}\0{sys.prefix}".encode(errors="surrogateescape")).hexdigest()
    return findings() / f"{name[:32]}.json"


def _surroundings() -> Iterator[str]:
    # "python" and "python3" of an environment are one interpreter, by which scripts and applications call it.
    yield f"{os.path.realpath(sys.executable)} {sys.prefix} {sys.version}"
    yield " ".join((platform.system(), platform.release(), platform.version(), platform.machine()))
    # On a machine of many cores the whole file takes long, and its beginning says what the instructions are.
    cpu = _beginning("/proc/cpuinfo")
    yield from dict.fromkeys(re.findall(r"^(?:model name|flags|Features|CPU [a-z]+)\s*:.*$", cpu, re.MULTILINE))
    yield _beginning("/proc/driver/nvidia/version")
    yield from (f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(_VARIABLES))
    yield str(sorted(_preferences().items()))
    for folder in sys.path:
        # An installation renews the folder of metadata, whose name holds the version.
        yield stamps(path for path in _entries(folder) if path.name.endswith((".dist-info", ".egg-info", ".egg-link")))


def _beginning(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(8192)
    except OSError:
        return ""


def _entries(folder: str) -> list[Path]:
    try:
        return list(Path(folder or os.getcwd()).iterdir())
    except OSError:  # a zip file, or a folder that is not there
        return []
