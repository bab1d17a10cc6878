"""Reads JSON that others wrote: UTF-8, no key twice, and every fault is a ``SourceError`` that names the file."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError


def parse_object(data: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; ``place`` names it in errors. Raises ``SourceError`` for anything else."""
    try:
        # A byte order mark is what editors on Windows put before a text.
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except _TwiceError as error:
        raise SourceError(f"{place} is ambiguous: {error}.", hint="Remove the one that is wrong.") from None
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is not valid JSON: {error}.", hint=advice(data, "Fetch the file again.")) from None
    if not isinstance(value, dict):
        raise SourceError(f"{place} holds no JSON object at its top.", hint="Fetch the file again.")
    return value


def advice(data: bytes, otherwise: str) -> str:
    """Return what to do about a file that begins with ``data`` and is not what its name says."""
    if data.startswith(b"version https://git-lfs"):
        return "It is git-lfs's pointer to the file: run `git lfs pull`, or fetch it with `hf download`."
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "It is UTF-16: save it as UTF-8."
    return otherwise


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ``SourceError`` where it cannot be read or is not one."""
    return parse_object(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises ``SourceError`` where it cannot be read."""
    try:
        # A pipe would be waited for.
        if path.exists() and not path.is_file():
            raise SourceError(f"{path} is no plain file.", hint="Put the model's own file in its place.")
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None


class _TwiceError(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} occurs twice")
    return found
