"""Damaged and hostile archives of a bundle: each is refused in words, or gives the bundle; nothing else is written.

The seeds are fixed; ``pytest -m hostile`` tries all, ``--share 0.1`` the first tenth.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
from limited import in_child
from small_bundle import variant, write
from sweeps import damaged, swept

from edgepack.bundle.files import open_bundle
from edgepack.errors import BundleError
from edgepack_ship.archive import headers
from edgepack_ship.archive.members import MAX_MEMBERS
from edgepack_ship.archive.packed import Archive
from edgepack_ship.incoming import Folder
from edgepack_ship.packing import pack
from edgepack_ship.writing import write_bundle

pytestmark = pytest.mark.hostile

Portion = Callable[[int], int]

NAMES = (
    "../up", "/up", "a/../../up", ".", "..", "", "./", "a//b", "C:\\up", "manifest.json", "MANIFEST.JSON", "model.sig",
    "variants", "variants/fake-q4", "variants/fake-q4/model.bin", "variants/fake-q4/Model.bin", "draft/manifest.json",
    "LICENSE", "./LICENSE", "license", "LICENSE/x", "caf\u00e9", "cafe\u0301", "x" * 300, "d/" * 40 + "x", "\udcff",
    "\x1b[2J", "._x", "PaxHeaders/x", ".x.0123456789abcdef.partial/y",
)  # fmt: skip
KINDS = b"0\x001234567xgLKSDVMAZ\xff "

MEASURED = """
import re, sys
from edgepack.cli import main
code = main(sys.argv[1:])
sys.stderr.write(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
sys.exit(code)
"""
"""A command that ends with the most KiB that it had in memory."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Archives of one bundle by each way of writing them."""
    place = tmp_path_factory.mktemp("sound")
    folder = write(place / "small", [variant("fake-q4"), variant("fake-f32")])
    (folder / "model.sig").write_bytes(b"signed")
    made = [pack(Folder(folder), place / "packed.tar").path]
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT):
        made.append(place / f"{form}.tar")
        with tarfile.open(made[-1], "w", format=form) as tar:
            tar.add(folder, "small")
    return [path.read_bytes() for path in made]


def starts(data: bytes) -> list[int]:
    """Where headers begin."""
    return [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]


def changed(number: int, sound: list[bytes]) -> bytes:
    """A mutated archive: of bytes, or of the fields of headers, whose checksums are right again."""
    choice = random.Random(number)
    data = bytearray(choice.choice(sound))
    if number % 4 == 0:
        at = choice.choice(starts(data))
        return damaged(bytes(data), choice, *((at, at + 512) if number % 8 else (0, None)))
    for _ in range(choice.choice((1, 1, 2, 5))):
        at = choice.choice(starts(data) or [0])
        block = bytearray(data[at : at + 512].ljust(512, b"\0"))
        match choice.randrange(8):
            case 0:
                block[:100] = choice.choice(NAMES).encode(errors="surrogateescape")[:100].ljust(100, b"\0")
            case 1:
                block[156] = choice.choice(KINDS)
            case 2:
                size = choice.choice((0, 1, 511, 512, 513, 4096, 1 << 20, 8**11 - 1))
                block[124:136] = b"%011o\0" % size
            case 3:
                block[124:136] = b"\x80" + choice.choice((0, 5, 1 << 40, 1 << 50, (1 << 87) - 1)).to_bytes(11)
            case 4:
                block[345:500] = choice.choice(NAMES).encode(errors="surrogateescape")[:155].ljust(155, b"\0")
            case 5:
                other = choice.choice(starts(data) or [0])
                data[at:at] = data[other : other + choice.choice((512, 1024, 4096))]
                continue
            case 6:
                del data[at : at + choice.choice((512, 1024, 4096))]
                continue
            case _:
                key, value = (
                    choice.choice(("path", "size", "comment", "GNU.sparse.map", "linkpath", "mtime")),
                    choice.choice(NAMES),
                )
                value = choice.choice((value, "0", "7", "-1", str(1 << 62), "9" * 500, "\0"))
                record = headers._record(key, value.encode(errors="surrogateescape")) * choice.choice((1, 1, 2, 400))
                data[at:at] = headers._block(b"x", b"x", len(record)) + record + headers.filling(len(record))
                continue
        block[148:156] = b"%06o\0 " % headers._checksum(bytes(block))
        data[at : at + 512] = block
    return bytes(data)


def test_no_archive_is_more_than_an_error(sound: list[bytes], tmp_path: Path, portion: Portion) -> None:
    place = tmp_path / "in"
    place.mkdir()

    def unpacked(number: int) -> None:
        tar, out = place / "a.tar", place / "out"
        tar.write_bytes(changed(number, sound))
        try:
            with Archive(tar) as archive:
                write_bundle(archive, out)
                open_bundle(out, verify="full")
            shutil.rmtree(out)
        except BundleError:
            pass
        assert os.listdir(place) == ["a.tar"], os.listdir(place)
        assert not (tmp_path / "up").exists()

    assert swept(unpacked, range(portion(6000)), tmp_path) == []
    assert not Path("/up").exists()


def test_headers_without_end_take_neither_memory_nor_time(tmp_path: Path) -> None:
    tar = tmp_path / "a.tar"

    def scanned() -> str:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            Archive(tar)
        except BundleError as error:
            grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
            return f"{grown < 40}: {error.message.partition(': ')[2]} ({grown} MiB)"
        return "opened"

    records = headers._record("mtime", b"0") + b"".join(headers._record(f"RHT.{n}", b"") for n in range(60))
    for member in (
        headers.encoded("{:0120}", 0, 0),
        headers._block(b"x", b"x", len(records))
        + records
        + headers.filling(len(records))
        + headers._block(b"5", b"d", 0),
        headers._block(b"0", b"%099d", 0),
    ):
        with open(tar, "wb") as file:
            for number in range(MAX_MEMBERS + 1):
                file.write(numbered(member, number))
            file.write(headers.END)
        ended = in_child(scanned, seconds=60)
        assert (ended.kind, ended.text[:4]) == ("answer", "True"), ended


def numbered(member: bytes, number: int) -> bytes:
    """A member with another name of the same length, where it has one to change."""
    if b"{:0120}" in member:
        return headers.encoded(f"{number:0120}", 0, 0)
    if b"%099d" in member:
        return headers._block(b"0", b"%099d" % number, 0)
    return member


def test_five_gibibytes_pass_in_bounded_memory(tmp_path: Path, portion: Portion) -> None:
    """The part of the inputs that is tried makes the payload smaller."""
    size = portion(5 << 10) << 20
    digest = subprocess.run(
        ["sh", "-c", f"head -c {size} /dev/zero | sha256sum"], capture_output=True, check=True, text=True
    ).stdout[:64]
    payload = {"path": "model.bin", "size": size, "sha256": digest}
    folder = write(tmp_path / "small", [variant("fake-q4", files=[payload])], {"fake-q4": b""})
    os.truncate(folder / "variants/fake-q4/model.bin", size)
    for words in (("pack", folder, "-o", tmp_path / "a.tar"), ("unpack", tmp_path / "a.tar", "-o", tmp_path / "out")):
        command = [sys.executable, "-c", MEASURED, *map(str, words)]
        assert int(subprocess.run(command, capture_output=True, check=True).stderr) < 64 * 1024
    assert (tmp_path / "out/variants/fake-q4/model.bin").stat().st_size == size
