"""Damaged and hostile differences: each is refused in words, or gives the bundle; and nothing else is written.

The seeds are fixed; ``pytest -m hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import small_bundle
from footprint import held
from sweeps import damaged, swept

from edgepack.bundle.files import open_bundle
from edgepack_ship.delta.difference import Difference
from edgepack_ship.delta.format import HEADER, LITERAL, MAGIC, PIECE
from edgepack_ship.diffing import diff
from edgepack_ship.writing import write_bundle

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

NUMBERS = (0, 1, 2, 7, 20, 2**16, 2**20, 2**20 + 1, 2**31, 2**32 - 2, 2**32 - 1)
EXTREMES: tuple[Any, ...] = (
    None, True, 0, -1, 2**50, 2**63, 2**64 - 1, 0.5, "", "../..", "0" * 64, "x" * 5000, b"", bytes(20), [], {}, [[]],
    [""] * 70_000,
)  # fmt: skip
MEMORY = 48 << 10
"""KiB by which a process may grow."""


def pieces(table: bytes, choice: random.Random) -> bytes:
    """Other pieces: one with an extreme number, or twice, often, elsewhere or left out."""
    if not table or len(table) % PIECE.itemsize:
        return bytes(20)
    rows = np.frombuffer(table, PIECE).copy()
    at = choice.randrange(len(rows))
    match choice.randrange(6):
        case 0:
            field = choice.choice(("source", "length", "stored"))
            rows[field][at] = choice.choice((*NUMBERS, int(rows[field][at]) + 1 & LITERAL))
        case 1:
            rows["offset"][at] = choice.choice((*NUMBERS, 2**63, 2**64 - 1, 2**64 - 2**20))
        case 2:
            rows = np.concatenate([rows, rows[at : at + 1]])
        case 3:
            rows = np.repeat(rows, choice.choice((2, 1000)))
        case 4:
            rows = choice.choice((rows[::-1], np.delete(rows, at)))
        case _:
            return damaged(table, choice)
    return rows.tobytes()


def hostile(number: int, plain: bytes) -> bytes:
    """A difference with damage anywhere, or written anew with another index."""
    choice = random.Random(number)
    _, version, _, begin = HEADER.unpack(plain[: HEADER.size])
    literals = plain[HEADER.size : begin]
    if number % 4 == 0:
        return damaged(plain, choice, *((0, HEADER.size + 200) if number % 8 else (begin, len(plain))))
    fields: dict[str, Any] = msgspec.msgpack.decode(plain[begin:])
    if number % 4 == 1:
        literals = damaged(literals, choice)
    for _ in range(choice.choice((1, 1, 2))):
        made = choice.choice(fields["made"]) if fields["made"] else fields
        match choice.randrange(5):
            case 0:
                fields[choice.choice((*fields, "surprise"))] = choice.choice(EXTREMES)
                break
            case 1:
                made[choice.choice((*made, "surprise"))] = choice.choice(EXTREMES)
                break
            case 2:
                fields["made"] += [choice.choice(fields["made"])] * choice.choice((1, 300))
            case 3:
                choice.shuffle(fields["sources"])
            case _:
                made["pieces"] = pieces(made["pieces"], choice)
    index = msgspec.msgpack.encode(fields)
    return HEADER.pack(MAGIC, version, len(index), HEADER.size + len(literals)) + literals + index


def test_no_difference_is_more_than_an_error(tmp_path: Path, portion: Portion) -> None:
    weights = random.Random(1).randbytes(1_500_000)
    changed = weights[:500_000] + bytes(byte ^ (byte & 1) for byte in weights[500_000:560_000]) + weights[560_000:]
    variants = [small_bundle.variant(id, data) for id, data in (("fake-q4", weights), ("fake-q8", weights[:9000]))]
    old = small_bundle.write(tmp_path / "old", variants, {"fake-q4": weights, "fake-q8": weights[:9000]})
    data = b"a longer header" + bytes(17) + changed
    new = small_bundle.add(
        small_bundle.write(tmp_path / "new", [small_bundle.variant("fake-q4", data)], {"fake-q4": data}, version="2"),
        "notes.txt",
        b"what is new\n" * 50,
    )
    (new / "model.sig").write_bytes(b"who vouches")
    delta = tmp_path / "whole.edgepack-delta"
    diff(open_bundle(old), open_bundle(new), delta)
    plain = delta.read_bytes()
    place = tmp_path / "place"
    place.mkdir()
    before = held()[3]
    given = {path.name for path in new.rglob("*")}

    def applied(number: int) -> None:
        file = place / "hostile.edgepack-delta"
        file.write_bytes(hostile(number, plain))
        out = place / "out"
        try:
            with Difference(file, lambda id: old) as incoming:
                write_bundle(incoming, out)
            assert {path.name for path in out.rglob("*")} <= given
            shutil.rmtree(out)
        finally:
            assert os.listdir(place) == [file.name], os.listdir(place)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < MEMORY, f"{grown >> 10} MiB"

    assert swept(applied, range(portion(6000)), tmp_path) == []
