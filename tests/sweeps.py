"""Many hostile inputs in few children: a batch shares a child, which says what was wrong, or ends and is found out."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from limited import in_child

from edgepack.errors import EdgepackError

T = TypeVar("T")

BATCH = 250


def swept(work: Callable[[T], object], cases: Sequence[T], folder: Path, *, seconds: float = 240) -> list[str]:
    """Return what was neither answered nor refused by an error of edgepack, at most one case of each batch."""
    wrong = []
    for start in range(0, len(cases), BATCH):
        at = folder / f"at-{start}"
        ended = in_child(partial(_each, work, enumerate(cases[start : start + BATCH], start), at), seconds=seconds)
        if (ended.kind, ended.text) != ("answer", ""):
            wrong.append(f"case {at.read_text()}: {ended.kind} {ended.text}")
    return wrong


def _each(work: Callable[[T], object], cases: Iterable[tuple[int, T]], at: Path) -> str:
    file = os.open(at, os.O_CREAT | os.O_WRONLY)
    for number, case in cases:
        os.pwrite(file, f"{number:6}".encode(), 0)
        try:
            work(case)
        except EdgepackError:
            pass
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return ""


def damaged(data: bytes, choice: random.Random, first: int = 0, last: int | None = None) -> bytes:
    """Return bytes with a few of them, between two places, changed, repeated, left out or made extreme."""
    found = bytearray(data)
    for _ in range(choice.choice((1, 1, 1, 2, 4, 16))):
        place = choice.randrange(first, min(last or len(found), len(found)) or 1)
        length = choice.choice((1, 1, 2, 4, 8, 64))
        match choice.randrange(6):
            case 0 if found:
                found[place] ^= 1 << choice.randrange(8)
            case 1:
                found[place : place + length] = choice.randbytes(length)
            case 2:
                found[place : place + length] = choice.choice((b"\x00", b"\xff", b"\x7f")) * length
            case 3:
                del found[place : place + length]
            case 4:
                found[place:place] = found[place : place + length] * choice.choice((1, 2, 100))
            case _:
                found[place : place + 8] = choice.choice((1, 2**31, 2**32 - 1, 2**62, 2**63 - 1)).to_bytes(8, "little")
    return bytes(found)
