"""A strict reading of a GGUF file's header, from the specification alone (ggml's docs/gguf.md), not from the writer.

Bytes in, facts out: every length is checked against the bytes that there are before anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from edgepack.errors import BuildError

Scalar = str | bool | int | float

# gguf_metadata_value_type -> struct's letter
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

# ggml_type -> (name, elements per block, bytes per block)
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor as the header has it: the rows first in ``shape``, ``start`` counted from the file's first byte."""

    name: str
    type: str
    shape: tuple[int, ...]
    row_bytes: int
    start: int


@dataclass(frozen=True, slots=True)
class Header:
    """The scalar keys (arrays are checked and left out) and the tensors by name."""

    keys: dict[str, Scalar]
    tensors: dict[str, Info]


def parse(data: memoryview, place: str) -> Header:
    """Parse the header of a whole file.

    Raises ``BuildError`` for anything that the specification does not allow: a wrong magic or version, a name twice, a
    type that the target does not write, a tensor outside the file or over another one.
    """
    cursor = _Cursor(data, place)
    if bytes(cursor.take(4)) != b"GGUF":
        raise cursor.damaged("does not start with GGUF")
    version, n_tensors, n_keys = cursor.unpack("<IQQ")
    if version != 3:
        raise cursor.damaged(f"has version {version} instead of 3")
    keys = dict(_keys(cursor, n_keys))
    alignment = keys.get("general.alignment", 32)
    if not isinstance(alignment, int) or alignment < 8 or alignment & (alignment - 1):
        raise cursor.damaged(f"has the alignment {alignment!r}")
    found = [_tensor(cursor) for _ in range(cursor.count(n_tensors, 24))]
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Info] = {}
    end = base
    for info in sorted(found, key=lambda info: info.start):
        start = base + info.start
        if info.name in tensors:
            raise cursor.damaged(f"has the tensor {info.name} twice")
        if start % alignment or start < end:
            raise cursor.damaged(f"puts {info.name} at {start}, which is not aligned or lies over another tensor")
        end = start + info.shape[0] * info.row_bytes
        if end > cursor.size:
            raise cursor.damaged(f"ends at {cursor.size}, inside {info.name}")
        tensors[info.name] = Info(info.name, info.type, info.shape, info.row_bytes, start)
    return Header(keys, tensors)


class _Cursor:
    def __init__(self, data: memoryview, place: str) -> None:
        self._data = data
        self._place = place
        self.position = 0

    @property
    def size(self) -> int:
        return len(self._data)

    def take(self, length: int) -> memoryview:
        if length > self.size - self.position:
            raise self.damaged(f"ends inside its header, at {self.size}")
        self.position += length
        return self._data[self.position - length : self.position]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def scalar(self, letter: str) -> int | float:
        value: int | float = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]
        return value

    def count(self, number: int, least: int) -> int:
        """A number of items that the header announces, each of at least so many bytes."""
        if number > (self.size - self.position) // least:
            raise self.damaged(f"announces {number} items where {self.size - self.position} bytes are left")
        return number

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise self.damaged(f"has a text before {self.position} that is not UTF-8") from None

    def damaged(self, what: str) -> BuildError:
        return BuildError(f"{self._place} {what}.", hint="The file was damaged after it was written; build it again.")


def _keys(cursor: _Cursor, number: int) -> Iterator[tuple[str, Scalar]]:
    seen: set[str] = set()
    for _ in range(cursor.count(number, 13)):
        key = cursor.text()
        if key in seen:
            raise cursor.damaged(f"has the key {key} twice")
        seen.add(key)
        (kind,) = cursor.unpack("<I")
        if kind == _ARRAY:
            _skip_array(cursor, key)
        else:
            yield key, _scalar(cursor, kind, key)


def _scalar(cursor: _Cursor, kind: int, key: str) -> Scalar:
    if kind == _STRING:
        return cursor.text()
    if kind == _BOOL:
        (value,) = cursor.unpack("<B")
        if value > 1:
            raise cursor.damaged(f"has the truth value {value} for {key}")
        return bool(value)
    if kind not in _SCALARS:
        raise cursor.damaged(f"has the value type {kind} for {key}")
    return cursor.scalar(_SCALARS[kind])


def _skip_array(cursor: _Cursor, key: str) -> None:
    kind, length = cursor.unpack("<IQ")
    if kind == _STRING:
        for _ in range(cursor.count(length, 8)):
            cursor.text()
    elif kind == _BOOL or kind in _SCALARS:
        cursor.take(length * struct.calcsize(f"<{_SCALARS.get(kind, 'B')}"))
    else:
        raise cursor.damaged(f"has an array of the value type {kind} for {key}")


def _tensor(cursor: _Cursor) -> Info:
    name = cursor.text()
    (dimensions,) = cursor.unpack("<I")
    if dimensions not in (1, 2):
        raise cursor.damaged(f"gives {name} {dimensions} dimensions")
    shape = cursor.unpack(f"<{dimensions}Q")[::-1]
    number, offset = cursor.unpack("<IQ")
    if number not in _TYPES:
        raise cursor.damaged(f"gives {name} the type {number}")
    kind, block, block_bytes = _TYPES[number]
    columns = prod(shape[1:])
    if not prod(shape) or columns % block:
        raise cursor.damaged(f"gives {name} of type {kind} the shape {shape}")
    return Info(name, kind, shape, columns // block * block_bytes, offset)
