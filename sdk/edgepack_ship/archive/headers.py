"""The headers of a tar archive: ustar with pax records as ``edgepack pack`` writes them, and of what other tars write
as much as a plain folder needs.

Bytes in and values out; it opens nothing, and knows nothing of bundles. The forms are those of POSIX.1-2017, pax, and
of the manual of GNU tar, "Basic Tar Format".
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

UNIT = 512
"""Headers are of so many bytes, and whatever follows them is filled up to as many."""
ALIGNMENT = 4096
END = bytes(2 * UNIT)
"""What stands behind the last member."""

MAX_EXTENSION = 1 << 20
"""Bytes that other records of one member may have, as its extended attributes."""
MAX_RECORDS = 64
MAX_NAME = 4096

Kind = Literal["file", "folder", "pax", "long name"]

SPOKEN: tuple[Kind, ...] = ("pax", "long name")
"""What says something of the member behind it."""
_KINDS: dict[bytes, Kind] = {b"0": "file", b"\0": "file", b"5": "folder", b"x": "pax", b"L": "long name"}
_REFUSED = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"S": "a sparse file",
    b"g": "a header for all that follows",
}
_POSIX, _GNU = b"ustar\x0000", b"ustar  \0"
_NUMBER = re.compile(rb" *([0-7]{1,12})[ \0]*")
_DIGITS = re.compile(rb"[1-9]\d{0,6}")
_MAX_SIZE = 1 << 50
_MAX_OCTAL = 8**11 - 1
_PAX_NAME = b"PaxHeaders/edgepack"
_SHORTEST = len(b"12 comment=\n")
# What may be said of a member and changes neither its name nor its bytes.
_PASSED_OVER = re.compile(r"[acm]time|comment|[ug]id|[ug]name|LIBARCHIVE\..+|SCHILY\.(?!realsize).+|RHT\..+")


class MalformedError(ValueError):
    """What is wrong with a header, as the end of a sentence."""


@dataclass(frozen=True, slots=True)
class Header:
    """A header by itself: ``size`` are the bytes of what follows it."""

    kind: Kind
    name: bytes
    size: int


def encoded(name: str, size: int, at: int) -> bytes:
    """Return the headers of a regular file that stand at the byte ``at``, a multiple of 512: its bytes, which follow
    them, then begin at a multiple of 4096.

    It belongs to nobody, was changed in 1970 and everybody may read it. What fills up the space is a comment.
    """
    plain = name.encode()
    short = plain if len(plain) <= 100 and name.isascii() else b"file"
    records = b"" if short == plain else _record("path", plain)
    records += b"" if size <= _MAX_OCTAL else _record("size", str(size).encode())
    least = at + 2 * UNIT + len(records) + _SHORTEST
    room = -(-least // ALIGNMENT) * ALIGNMENT - at - 2 * UNIT
    records += _comment(room - len(records))
    return _block(b"x", _PAX_NAME, len(records)) + records + _block(b"0", short, size if size <= _MAX_OCTAL else 0)


def filling(size: int) -> bytes:
    """Return the zeros between the bytes of a member and the next header."""
    return bytes(-size % UNIT)


def decoded(block: bytes) -> Header:
    """Return what a header of 512 bytes says. Raises ``MalformedError``."""
    gnu = block[257:265] == _GNU
    if not gnu and block[257:265] != _POSIX:
        raise MalformedError("there is no header of a tar archive")
    if _number(block[148:156], "checksum") != _checksum(block):
        raise MalformedError("the checksum of a header is wrong")
    name, prefix = _text(block[:100]), b"" if gnu else _text(block[345:500])
    kind = _KINDS.get(block[156:157])
    name = prefix + b"/" + name if prefix else name
    if kind is None:
        what = _REFUSED.get(block[156:157], f"of the kind {block[156:157]!r:.20}")
        raise MalformedError(f"{shown(name)} is {what}, and a bundle has regular files alone")
    return Header(kind, name, _number(block[124:136], "size"))


def records(data: bytes) -> tuple[bytes | None, int | None]:
    """Return the path and the size that pax records give to a member, None for what they leave to its header.

    Raises ``MalformedError``, and for records that would give it other bytes than those that follow it.
    """
    found: dict[str, bytes] = {}
    at = 0
    for _ in range(MAX_RECORDS):
        if at == len(data):
            break
        key, value, at = _next(data, at)
        if key in found:
            raise MalformedError(f"the record {key[:40]!r} stands there twice")
        if key not in ("path", "size") and not _PASSED_OVER.fullmatch(key):
            raise MalformedError(f"a record {key[:40]!r} changes what follows it")
        found[key] = value
    else:
        raise MalformedError(f"a member has more than {MAX_RECORDS} records")
    size = found.get("size")
    if size is not None and not re.fullmatch(rb"\d{1,20}", size):
        raise MalformedError(f"{size[:20]!r} is no size")
    return found.get("path"), None if size is None else _bounded(int(size))


def name_of(raw: bytes, folder: bool) -> str:
    """Return the path of a member in its plain form: relative, with ``/``, without ``.`` and ``..``; "" for the folder
    in which all others are. Raises ``MalformedError`` for any that leaves it."""
    try:
        name = raw.decode()
    except UnicodeDecodeError:
        raise MalformedError(f"the name {shown(raw)} is not UTF-8") from None
    if len(raw) > MAX_NAME:
        raise MalformedError(f"the name {shown(raw)} has more than {MAX_NAME:,} bytes")
    parts = (name.removesuffix("/") if folder else name).split("/")
    while parts[:1] == ["."]:
        del parts[0]
    if (not parts and not folder) or any(part in ("", ".", "..") or "\\" in part or "\0" in part for part in parts):
        raise MalformedError(f"the name {shown(raw)} leaves the bundle or is not in its plain form")
    return "/".join(parts)


def shown(raw: bytes) -> str:
    """Return a name from outside for a sentence, at most some letters of it."""
    return repr(raw[:60].decode(errors="replace"))


def _next(data: bytes, at: int) -> tuple[str, bytes, int]:
    """Return the name and the value of the record at a place, and where the next one begins."""
    space = data.find(b" ", at, at + 8)
    digits = data[at:space]
    if space < 0 or not _DIGITS.fullmatch(digits):
        raise MalformedError("a record does not begin with its length")
    end = at + int(digits)
    key, equals, value = data[space + 1 : end - 1].partition(b"=")
    if end > len(data) or end <= space + 1 or data[end - 1 : end] != b"\n" or not equals:
        raise MalformedError("a record does not end where it says")
    try:
        return key.decode(), value, end
    except UnicodeDecodeError:
        raise MalformedError(f"the name of a record {shown(key)} is not UTF-8") from None


def _record(key: str, value: bytes) -> bytes:
    """Return a pax record, which begins with its own length."""
    rest = b" " + key.encode() + b"=" + value + b"\n"
    length = len(rest) + 1
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _comment(length: int) -> bytes:
    """Return a record without meaning of so many bytes, at least ``_SHORTEST``."""
    begin = f"{length} comment=".encode()
    return begin + b" " * (length - len(begin) - 1) + b"\n"


def _block(kind: bytes, name: bytes, size: int) -> bytes:
    fields = (
        name.ljust(100, b"\0"),
        b"0000644\0" + b"0000000\0" * 2,
        b"%011o\0" % size,
        b"%011o\0" % 0,
        b" " * 8,
        kind,
        bytes(100),
        _POSIX,
        bytes(64),
        b"0000000\0" * 2,
        bytes(155 + 12),
    )
    block = b"".join(fields)
    return block[:148] + b"%06o\0 " % _checksum(block) + block[156:]


def _checksum(block: bytes) -> int:
    return sum(block[:148]) + 8 * ord(" ") + sum(block[156:])


def _number(field: bytes, what: str) -> int:
    """Read a number in octal digits, or as GNU tar writes a large one: in bytes after 0x80."""
    if field[0] == 0x80:
        return _bounded(int.from_bytes(field[1:]))
    if not (found := _NUMBER.fullmatch(field)):
        raise MalformedError(f"{field!r} is no {what}")
    return int(found[1], 8)


def _bounded(size: int) -> int:
    if size > _MAX_SIZE:
        raise MalformedError(f"a member says that it has {size:,} bytes")
    return size


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]
