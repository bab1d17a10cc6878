"""Reads JSON that others wrote: UTF-8, no key twice, and every fault is a ``SourceError`` that names the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError


def parse_object(data: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; ``place`` names it in errors. Raises ``SourceError`` for anything else."""
    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=_without_duplicates)
    except (ValueError, RecursionError) as error:
        raise SourceError(f"{place} is not valid JSON: {error}.", hint="Fetch the file again.") from None
    if not isinstance(value, dict):
        raise SourceError(f"{place} holds no JSON object at its top.", hint="Fetch the file again.")
    return value


def read_object(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ``SourceError`` where it cannot be read or is not one."""
    return parse_object(read_bytes(path), str(path))


def read_bytes(path: Path) -> bytes:
    """Return a file's bytes. Raises ``SourceError`` where it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} occurs twice")
    return found
