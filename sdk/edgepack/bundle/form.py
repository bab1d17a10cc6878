"""The form of a manifest, before anybody asks what it says: how deep, how often, and which paths."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import PurePosixPath
from typing import Any

import numpy as np

from edgepack.errors import BundleDamagedError

MAX_DEPTH = 64
"""Levels of a manifest; the tools of a golden conversation are what is nested most."""
MAX_PATH, MAX_PARTS = 1024, 16
"""Letters and parts of a path: who looks at every folder of every path ends some day."""

# What is outside of strings, brackets excepted; a string that does not end goes to the end.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def check(data: bytes) -> None:
    """Raise ``ValueError`` for nesting that a reader would have to follow, and for a name that stands twice."""
    if depth_of(data) > MAX_DEPTH:
        raise ValueError(f"it is nested more than {MAX_DEPTH} levels deep")
    json.loads(data, object_pairs_hook=_once)


def depth_of(data: bytes | bytearray) -> int:
    """Return the levels of JSON, which may be none, without following them: readers that do may leave their stack."""
    brackets = np.frombuffer(_STRING.sub(b"", data).translate(None, _NO_BRACKETS), np.uint8)
    depths = np.cumsum(np.where(brackets & 0x7 == 0x3, 1, -1), dtype=np.int32)  # the low bits of "[" and "{"
    return int(depths.max(initial=0))


def _once(pairs: list[tuple[str, Any]]) -> None:
    ((name, times),) = Counter(name for name, _ in pairs).most_common(1) or [("", 1)]
    if times > 1:
        raise ValueError(f"the field {name[:40]!r} stands there twice")


def check_path(path: str, place: str) -> None:
    """Raise ``BundleDamagedError`` for a path that leaves the bundle, or is longer than any that a bundle needs."""
    parts = PurePosixPath(path[:MAX_PATH]).parts
    plain = 0 < len(parts) <= MAX_PARTS and ".." not in parts and "\\" not in path and not path.startswith("/")
    if not plain or str(PurePosixPath(path)) != path or len(path) > MAX_PATH:
        which = f"{place}: the path {path[:80]!r}"
        if len(path) > MAX_PATH or len(parts) > MAX_PARTS:
            raise BundleDamagedError(f"{which} has more than {MAX_PATH} letters, or than {MAX_PARTS} parts.")
        raise BundleDamagedError(f"{which} leaves the bundle or is not in its plain form.")
