"""Reads JSON that others wrote: UTF-8, no key twice, and every fault is a ``SourceError`` that names the file."""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack_packager.positions import BINARY

MAX_BYTES = 128 * 1024 * 1024
"""Four times the largest tokenizer.json that is known."""

MAX_DEPTH = 100
"""Levels of nesting; the readers that come after this one stop at 128 and more."""

_AGAIN = "Fetch the file again."


def parse_object(data: bytes, place: str) -> dict[str, Any]:
    """Return the JSON object in ``data``; ``place`` names it in errors. Raises ``SourceError`` for anything else.

    Its texts can be written as UTF-8, and it is nested no deeper than ``MAX_DEPTH``.
    """
    value = parse(data, place)
    if not isinstance(value, dict):
        raise SourceError(f"{place} holds no JSON object at its top.", hint=_AGAIN)
    return value


def parse(data: bytes, place: str) -> Any:
    """Return the JSON value in ``data``, as ``parse_object`` an object."""
    try:
        # A byte order mark is what editors on Windows put before a text.
        value = json.loads(data.decode("utf-8-sig"), object_pairs_hook=_without_duplicates)
    except _TwiceError as error:
        raise SourceError(f"{place} is ambiguous: {error}.", hint="Remove the one that is wrong.") from None
    except RecursionError:
        raise _too_deep(place) from None
    except ValueError as error:
        raise SourceError(f"{place} is not valid JSON: {error}.", hint=advice(data, _AGAIN)) from None
    _check_depth(value, place)
    if re.search(rb"\\u[dD][89a-fA-F]", data):
        _check_pairs(value, place)
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
    """Return a file's bytes. Raises ``SourceError`` where it cannot be read, or has more than ``MAX_BYTES``."""
    try:
        descriptor = open_plain(path)
        with open(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            if size > MAX_BYTES:
                raise SourceError(f"{path} has {size} bytes, more than any file of its kind.", hint=_AGAIN)
            return file.read()
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None


def open_plain(path: Path, hint: str = "Put the model's own file in its place.") -> int:
    """Return a descriptor of a plain file, to read. Raises ``OSError``, and ``SourceError`` for anything else."""
    descriptor = os.open(path, os.O_RDONLY | BINARY | getattr(os, "O_NONBLOCK", 0))  # a pipe would be waited for
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path} is no plain file.", hint=hint)
    return descriptor


def _check_depth(value: Any, place: str) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        below = (child for each in level for child in (each.values() if isinstance(each, dict) else each))
        level = [child for child in below if isinstance(child, dict | list)]
        if not level:
            return
    raise _too_deep(place)


def _too_deep(place: str) -> SourceError:
    return SourceError(f"{place} is nested deeper than {MAX_DEPTH} levels.", hint=_AGAIN)


def _check_pairs(value: Any, place: str) -> None:
    """Refuse half of a surrogate pair, which an escape can write and UTF-8 cannot."""
    waiting: list[tuple[str, Any]] = [("", value)]
    while waiting:
        field, each = waiting.pop()
        if isinstance(each, dict):
            waiting += [(field, key) for key in each]
            waiting += [(f"{field}.{key}".lstrip("."), child) for key, child in each.items()]
        elif isinstance(each, list):
            waiting += [(f"{field}[{index}]", child) for index, child in enumerate(each)]
        elif isinstance(each, str) and re.search("[\ud800-\udfff]", each):
            where = field.encode("utf-8", "backslashreplace").decode() or "the top"
            raise SourceError(
                f"{place}: {where} holds half of a surrogate pair, which no text can hold.",
                hint="Correct or remove it.",
            )


class _TwiceError(ValueError):
    pass


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _TwiceError(f"the key {twice!r} occurs twice")
    return found
