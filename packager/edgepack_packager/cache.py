"""What one build computed, and the next of the same inputs would compute again: files under the digest of all inputs.

A key holds everything that an answer depends on: the bytes that it was made of, edgepack's own code, the libraries, and
the kind of processor. A file carries the digest of its answer, and one that is damaged is computed again. Whatever is
wrong with the folder, nothing is remembered and nothing fails. Builds may share it: a file is written whole, or not at
all.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import edgepack
from edgepack.bundle.writing import write_atomically

LIMIT = 256 * 1024 * 1024
"""Bytes of all files together: those that were used longest ago make room."""

_DIGEST = hashlib.sha256().digest_size
_LIBRARIES = ("jinja2", "msgspec", "numpy", "tokenizers")


def folder() -> Path:
    """Return where builds remember things: ``EDGEPACK_CACHE``, else the system's place for what can be lost.

    Raises ``RuntimeError`` for a user without a home.
    """
    if own := os.environ.get("EDGEPACK_CACHE"):
        return Path(own)
    system = platform.system()
    if system == "Windows":
        return Path(os.environ.get("LOCALAPPDATA") or "~/AppData/Local").expanduser() / "edgepack" / "cache"
    if system == "Darwin":
        return Path("~/Library/Caches/edgepack").expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "edgepack"


def key(*facts: bytes) -> str:
    """Return the digest of facts, of edgepack's code, and of the libraries and the machine that it runs on."""
    whole = hashlib.sha256()
    for fact in (*facts, *_surroundings()):
        whole.update(len(fact).to_bytes(8, "little") + fact)
    return whole.hexdigest()


def recall(name: str) -> bytes | None:
    """Return what was kept under a key, None where nothing sound was."""
    with suppress(OSError, RuntimeError):
        place = folder() / name
        found = place.read_bytes()
        if hashlib.sha256(found[_DIGEST:]).digest() == found[:_DIGEST]:
            os.utime(place)
            return found[_DIGEST:]
        place.unlink()
    return None


def keep(name: str, answer: bytes) -> None:
    """Keep an answer under a key, and remove what was used longest ago where that is too much."""
    with suppress(OSError, RuntimeError):
        folder().mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(folder() / name, hashlib.sha256(answer).digest() + answer)
        _make_room()


def _make_room() -> None:
    kept = sorted(((file.stat(), file) for file in folder().iterdir()), key=lambda one: -one[0].st_mtime_ns)
    size = 0
    for status, file in kept:
        size += status.st_size
        if size > LIMIT:
            file.unlink(missing_ok=True)


@cache
def _surroundings() -> tuple[bytes, ...]:
    code = hashlib.sha256()
    for package in (Path(edgepack.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            code.update(path.relative_to(package).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    facts = [sys.version, platform.machine(), *(f"{name} {_version(name)}" for name in _LIBRARIES)]
    return code.digest(), *(fact.encode() for fact in facts)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "unknown"
