"""From an old bundle and a file to a new bundle; and only from that one, and whole or not at all."""

from __future__ import annotations

import os
import random
import shutil
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle

from edgepack.bundle.files import SIGNATURE, open_bundle
from edgepack.errors import (
    BundleDamagedError,
    BundleError,
    BundleTooNewError,
    OutputExistsError,
)
from edgepack_ship.delta import format
from edgepack_ship.delta.difference import Difference
from edgepack_ship.diffing import Report, diff
from edgepack_ship.incoming import opened
from edgepack_ship.writing import write_bundle

WEIGHTS = random.Random(3).randbytes(3_000_000)
MERGED = WEIGHTS[:900_000] + bytes(byte + 1 & 255 if byte & 1 else byte for byte in WEIGHTS[900_000:1_000_000])
MERGED += WEIGHTS[1_000_000:]


def bundle(folder: Path, weights: dict[str, bytes], **changes: object) -> Path:
    variants = [small_bundle.variant(id, data) for id, data in weights.items()]
    return small_bundle.write(folder, variants, weights, **changes)


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle(tmp_path_factory.mktemp("old") / "old", {"fake-q4": WEIGHTS, "fake-q8": WEIGHTS[::-1]})


def made(old: Path, new: Path) -> tuple[Path, Report]:
    out = new.with_suffix(".edgepack-delta")
    return out, diff(open_bundle(old), open_bundle(new), out)


def patched(old: Path, delta: Path, out: Path, **how: object) -> Path:
    base = open_bundle(old)
    with Difference(delta, lambda id: old if id == base.id else None) as incoming:
        return write_bundle(incoming, out, **how).path  # type: ignore[arg-type]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


CHANGES: dict[str, tuple[Callable[[Path], Path], int]] = {
    "nothing": (lambda place: bundle(place, {"fake-q4": WEIGHTS, "fake-q8": WEIGHTS[::-1]}), 600),
    "a template": (
        lambda place: small_bundle.add(
            bundle(place, {"fake-q4": b"GGUF" + bytes(92) + WEIGHTS, "fake-q8": WEIGHTS[::-1]}), "new.txt", b"new\n"
        ),
        2500,
    ),
    "a merge": (lambda place: bundle(place, {"fake-q4": MERGED, "fake-q8": WEIGHTS[::-1]}), 30_000),
    "a variant more": (
        lambda place: bundle(place, {"fake-q4": WEIGHTS, "fake-q8": WEIGHTS[::-1], "fake-q5": MERGED}),
        30_000,
    ),
    "a variant less": (lambda place: bundle(place, {"fake-q8": WEIGHTS[::-1]}), 2000),
    "all": (lambda place: bundle(place, {"fake-q2": random.Random(4).randbytes(70_000)}), 72_000),
}


@pytest.mark.parametrize("name", CHANGES)
def test_the_new_bundle_comes_out_of_the_old_one_and_of_little_more(name: str, old: Path, tmp_path: Path) -> None:
    change, most = CHANGES[name]
    new = change(tmp_path / "new")
    delta, report = made(old, new)
    assert report.bytes == delta.stat().st_size <= most
    assert report.whole == sum(map(len, tree(new).values()))
    assert sum(each.takes for each in report.changes) < report.bytes
    assert tree(patched(old, delta, tmp_path / "out")) == tree(new)


def test_a_signature_and_a_draft_come_along(old: Path, tmp_path: Path) -> None:
    new = small_bundle.write_with_draft(tmp_path / "new")
    (new / SIGNATURE).write_bytes(b"who vouches")
    delta, _ = made(old, new)
    assert tree(patched(old, delta, tmp_path / "out")) == tree(new)
    newer = small_bundle.write_with_draft(tmp_path / "newer", {"version": "0.2.0"})
    delta, report = made(new, newer)
    assert [each.name for each in report.changes] == ["manifest.json"]
    assert tree(patched(new, delta, tmp_path / "out-2")) == tree(newer)


def test_what_the_old_copy_lacks_is_not_asked_of_it(old: Path, tmp_path: Path) -> None:
    part = Path(shutil.copytree(old, tmp_path / "part"))
    shutil.rmtree(part / "variants" / "fake-q8")
    new = bundle(tmp_path / "new", {"fake-q4": MERGED, "fake-q8": WEIGHTS[::-1] + b"more"})
    delta, _ = made(old, new)
    with Difference(delta, lambda id: part) as incoming:
        assert incoming.variants() == ("fake-q4",)
        name, file = "variants/fake-q8/model.bin", incoming.contents().files()["variants/fake-q8/model.bin"]
        with pytest.raises(BundleError, match=r"cannot be made of .* and of what is here of its base"):
            next(incoming.blocks(name, file))
    assert open_bundle(patched(part, delta, tmp_path / "out")).absent == ("fake-q8",)
    with pytest.raises(BundleError, match="does not hold the variant 'fake-q8'"):
        patched(part, delta, tmp_path / "none", variants=["fake-q8"])
    whole, _ = made(part, new.rename(tmp_path / "again"))
    assert tree(patched(part, whole, tmp_path / "all")) == tree(tmp_path / "again")


def test_a_file_begins_at_any_byte(old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": MERGED, "fake-q8": WEIGHTS[::-1]}))
    with opened(str(delta), lambda id: old) as incoming:
        for name, data in (("variants/fake-q4/model.bin", MERGED), ("variants/fake-q8/model.bin", WEIGHTS[::-1])):
            file = incoming.contents().files()[name]
            for begin in (0, 1, 899_999, 900_001, 1_048_576, len(data) - 1, len(data)):
                assert b"".join(incoming.blocks(name, file, begin)) == data[begin:]


def test_another_base_is_refused(old: Path, tmp_path: Path) -> None:
    delta, report = made(old, bundle(tmp_path / "new", {"fake-q4": MERGED}))
    with pytest.raises(BundleError, match=f"made for sha256:{report.base}, which is not installed here"):
        opened(str(delta), lambda id: None)
    with pytest.raises(BundleDamagedError, match=r"The base of .* is damaged: .* is another bundle"):
        opened(str(delta), lambda id: tmp_path / "new")


def test_a_damaged_base_gives_no_bundle(old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": MERGED, "fake-q8": WEIGHTS[::-1]}))
    damaged = Path(shutil.copytree(old, tmp_path / "damaged"))
    with open(damaged / "variants" / "fake-q4" / "model.bin", "r+b") as file:
        file.write(b"other")
    with pytest.raises(BundleDamagedError, match="its sha256 differs"):
        patched(damaged, delta, tmp_path / "out")
    os.truncate(damaged / "variants" / "fake-q4" / "model.bin", 1000)
    with pytest.raises(BundleDamagedError, match=r"The base of .* it has 1,000 bytes"):
        opened(str(delta), lambda id: damaged)
    assert not (tmp_path / "out").exists()


def test_a_damaged_new_bundle_gives_no_difference(old: Path, tmp_path: Path) -> None:
    new = bundle(tmp_path / "new", {"fake-q4": MERGED})
    after = open_bundle(new)
    with open(new / "variants" / "fake-q4" / "model.bin", "r+b") as file:
        file.write(b"other")
    out = tmp_path / "x.edgepack-delta"
    with pytest.raises(BundleDamagedError, match=r"The old bundle or the new one is not what .* its sha256 differs"):
        diff(open_bundle(old), after, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new"]
    out.write_bytes(b"mine")
    with pytest.raises(OutputExistsError):
        diff(open_bundle(old), after, out)
    assert out.read_bytes() == b"mine"


def rewritten(delta: Path, change: Callable[[dict], object], literals: bytes | None = None) -> Path:  # type: ignore[type-arg]
    """Write the difference with another index: a change of its fields."""
    data = delta.read_bytes()
    _, version, _, begin = format.HEADER.unpack(data[: format.HEADER.size])
    fields = msgspec.msgpack.decode(data[begin:])
    change(fields)
    index = msgspec.msgpack.encode(fields)
    tail = data[format.HEADER.size : begin] if literals is None else literals
    head = format.HEADER.pack(format.MAGIC, version, len(index), format.HEADER.size + len(tail))
    out = delta.with_suffix(".changed")
    out.write_bytes(head + tail + index)
    return out


def piece(*rows: tuple[int, int, int, int]) -> bytes:
    return np.array(list(rows), format.PIECE).tobytes()


N, REST = format.LITERAL, len(WEIGHTS) - 1000
WRONG: dict[str, tuple[list[tuple[int, int, int, int]], str]] = {
    "a piece of no bytes": ([(1, 0, 0, 0)], "makes no sense"),
    "a source that is not there": ([(7, REST, 0, 0)], "makes no sense"),
    "neither source nor literals": ([(N, REST, 0, 0)], "makes no sense"),
    "terabytes out of one literal": ([(N, 2**32 - 1, 1, 0)], "makes no sense"),
    "more literals than bytes": ([(N, 10, 11, 0)], "makes no sense"),
    "terabytes of copies": ([(1, 2**32 - 2, 0, 0)] * 1000, "make another size"),
    "behind the source's end": ([(1, REST, 0, 1001)], "ends behind"),
    "before its beginning": ([(1, REST, 0, 2**64 - 1)], "ends behind"),
    "literals that are not there": ([(1, REST - 10, 0, 0), (N, 10, 10, 0)], "its pieces and its literals differ"),
}


@pytest.mark.parametrize("name", WRONG)
def test_pieces_that_make_no_sense_are_refused_before_any_is_followed(name: str, old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": WEIGHTS[1000:]}))
    rows, message = WRONG[name]

    def change(fields: dict) -> None:  # type: ignore[type-arg]
        (moved,) = (each for each in fields["made"] if each["size"] == REST)
        assert moved["pieces"] == piece((1, REST, 0, 1000))
        moved["pieces"] = piece(*rows)

    with pytest.raises(BundleDamagedError, match=message):
        Difference(rewritten(delta, change), lambda id: old)


FIELDS: dict[str, Callable[[dict], object]] = {  # type: ignore[type-arg]
    "half a piece": lambda fields: fields["made"][0].update(pieces=fields["made"][0]["pieces"][:-1]),
    "a file twice": lambda fields: fields["made"].append({**fields["made"][-1], "pieces": b"", "size": 0}),
    "a field more": lambda fields: fields.update(surprise=1),
    "another manifest": lambda fields: fields.update(bundle="0" * 64),
    "a digest that is none": lambda fields: fields.update(base="../../etc"),
    "a size below zero": lambda fields: fields["made"][0].update(size=-1),
}


@pytest.mark.parametrize("name", FIELDS)
def test_an_index_that_makes_no_sense_is_refused(name: str, old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": WEIGHTS[1000:]}))
    with pytest.raises(BundleError):
        Difference(rewritten(delta, FIELDS[name]), lambda id: old)


def test_a_newer_difference_asks_for_an_upgrade(old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": MERGED}))
    with open(delta, "r+b") as file:
        file.seek(8)
        file.write(b"\x02")
    with pytest.raises(BundleTooNewError, match="version 2"):
        opened(str(delta), lambda id: old)


def test_a_file_that_is_no_difference_is_told_apart(tmp_path: Path, old: Path) -> None:
    for data in (b"", b"EPDEL", b"EPDELTA\n", b"EPDELTA\n" + bytes(16), b"EPDELTA\n\x01\0\0\0" + b"\xff" * 12):
        (tmp_path / "x").write_bytes(data)
        with pytest.raises(BundleError):
            opened(str(tmp_path / "x"), lambda id: old)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(BundleDamagedError, match="no regular file"):
        opened(str(tmp_path / "pipe"), lambda id: old)


def test_literals_that_inflate_without_end_are_cut(old: Path, tmp_path: Path) -> None:
    delta, _ = made(old, bundle(tmp_path / "new", {"fake-q4": MERGED}))
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = stream.compress(bytes(200 << 20)) + stream.flush()

    def change(fields: dict) -> None:  # type: ignore[type-arg]
        whole = fields["made"][0]
        fields["made"] = [whole | {"size": 1 << 20, "pieces": piece((N, 1 << 20, len(bomb), 0))}]

    place = rewritten(delta, change, bomb)
    tracemalloc.start()
    with pytest.raises(BundleDamagedError, match=r"do not make 1,048,576 bytes"):
        Difference(place, lambda id: old)
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
