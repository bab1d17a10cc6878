"""A strict reading of a GGUF file's header, from the specification alone (ggml's docs/gguf.md), not from the writer.

Bytes in, facts out: every length is checked against the bytes that there are before anything is made of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

from edgepack.errors import EdgepackError

Scalar = str | bool | int | float

Fault = Callable[[str], EdgepackError]
"""Makes the error of the end of a sentence that begins with the file."""

# gguf_metadata_value_type -> struct's letter
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 10: "Q", 11: "q", 12: "d"}
_BOOL, _STRING, _ARRAY = 7, 8, 9

MOST = 1 << 16
"""Keys, or tensors: no file of a model has as many of either."""

MAX_HEADER_BYTES = 100_000_000
"""Several times the header with the largest vocabulary that is known."""

# ggml_type -> (name, elements per block, bytes per block): ggml.h and ggml-common.h
_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    41: ("Q1_0", 128, 18),
    42: ("Q2_0", 64, 18),
}


@dataclass(frozen=True, slots=True)
class Info:
    """A tensor as the header has it: the rows first in ``shape``, ``start`` counted from the file's first byte."""

    name: str
    type: str
    shape: tuple[int, ...]
    row_bytes: int
    start: int

    @property
    def size(self) -> int:
        """Its bytes."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True)
class Array:
    """An array of the metadata, which is read where it is asked for: its elements' type and number, and where their
    bytes begin and end."""

    kind: int
    length: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class Header:
    """The scalar keys, the places of the arrays, which are checked, and the tensors by name."""

    keys: dict[str, Scalar]
    arrays: dict[str, Array]
    tensors: dict[str, Info]


def parse(data: memoryview, fault: Fault) -> Header:
    """Parse the header of a whole file.

    Raises what ``fault`` makes for anything that the specification does not allow: a wrong magic or version, a name
    twice, a type without a name, a tensor outside the file or over another one.
    """
    cursor = _Cursor(data, fault)
    if bytes(cursor.take(4)) != b"GGUF":
        raise fault("does not start with GGUF")
    version, n_tensors, n_keys = cursor.unpack("<IQQ")
    if version != 3:
        raise fault(f"has version {version} instead of 3")
    found = dict(_keys(cursor, n_keys))
    keys = {key: value for key, value in found.items() if not isinstance(value, Array)}
    arrays = {key: value for key, value in found.items() if isinstance(value, Array)}
    alignment = keys.get("general.alignment", 32)
    if type(alignment) is not int or not 8 <= alignment <= MOST or alignment & (alignment - 1):
        raise fault(f"has the alignment {alignment!r}")
    entries = [_tensor(cursor) for _ in range(cursor.count(n_tensors, 24, MOST))]
    base = -(-cursor.position // alignment) * alignment
    tensors: dict[str, Info] = {}
    end = base
    for info in sorted(entries, key=lambda info: info.start):
        start = base + info.start
        if info.name in tensors:
            raise fault(f"has the tensor {info.name} twice")
        if start % alignment or start < end:
            raise fault(f"puts {info.name} at {start}, which is not aligned or lies over another tensor")
        end = start + info.size
        if end > len(data):
            raise fault(f"ends at {len(data)}, inside {info.name}")
        tensors[info.name] = Info(info.name, info.type, info.shape, info.row_bytes, start)
    return Header(keys, arrays, tensors)


def elements(data: memoryview, array: Array, fault: Fault) -> list[Scalar]:
    """Return the elements of an array of the parsed file ``data``."""
    cursor = _Cursor(data, fault)
    cursor.position = array.start
    if array.kind == _STRING:
        return [cursor.text() for _ in range(array.length)]
    letter = "?" if array.kind == _BOOL else _SCALARS[array.kind]
    return list(cursor.unpack(f"<{array.length}{letter}"))


class _Cursor:
    def __init__(self, data: memoryview, fault: Fault) -> None:
        self._data = data
        self.fault = fault
        self.position = 0
        self.size = min(len(data), MAX_HEADER_BYTES)

    def take(self, length: int) -> memoryview:
        if length > self.size - self.position:
            raise self.fault(f"ends inside its header, at {self.size}")
        self.position += length
        return self._data[self.position - length : self.position]

    def unpack(self, form: str) -> tuple[int, ...]:
        return struct.unpack(form, self.take(struct.calcsize(form)))

    def scalar(self, letter: str) -> int | float:
        value: int | float = struct.unpack(f"<{letter}", self.take(struct.calcsize(f"<{letter}")))[0]
        return value

    def count(self, number: int, least: int, most: int | None = None) -> int:
        """A number of items that the header announces, each of at least so many bytes, and at most ``most`` of them."""
        if number > (self.size - self.position) // least or (most is not None and number > most):
            raise self.fault(f"announces {number} items where {self.size - self.position} bytes are left")
        return number

    def text(self) -> str:
        (length,) = self.unpack("<Q")
        try:
            return str(self.take(length), "utf-8")
        except UnicodeDecodeError:
            raise self.fault(f"has a text before {self.position} that is not UTF-8") from None


def _keys(cursor: _Cursor, number: int) -> Iterator[tuple[str, Scalar | Array]]:
    seen: set[str] = set()
    for _ in range(cursor.count(number, 13, MOST)):
        key = cursor.text()
        if key in seen:
            raise cursor.fault(f"has the key {key} twice")
        seen.add(key)
        (kind,) = cursor.unpack("<I")
        yield key, _array(cursor, key) if kind == _ARRAY else _scalar(cursor, kind, key)


def _scalar(cursor: _Cursor, kind: int, key: str) -> Scalar:
    if kind == _STRING:
        return cursor.text()
    if kind == _BOOL:
        (value,) = cursor.unpack("<B")
        if value > 1:
            raise cursor.fault(f"has the truth value {value} for {key}")
        return bool(value)
    if kind not in _SCALARS:
        raise cursor.fault(f"has the value type {kind} for {key}")
    return cursor.scalar(_SCALARS[kind])


def _array(cursor: _Cursor, key: str) -> Array:
    kind, length = cursor.unpack("<IQ")
    start = cursor.position
    if kind == _STRING:
        for _ in range(cursor.count(length, 8)):
            cursor.text()
    elif kind == _BOOL or kind in _SCALARS:
        cursor.take(length * struct.calcsize(f"<{_SCALARS.get(kind, 'B')}"))
    else:
        raise cursor.fault(f"has an array of the value type {kind} for {key}")
    return Array(kind, length, start, cursor.position)


def _tensor(cursor: _Cursor) -> Info:
    name = cursor.text()
    (dimensions,) = cursor.unpack("<I")
    if not 1 <= dimensions <= 4:
        raise cursor.fault(f"gives {name} {dimensions} dimensions")
    shape = cursor.unpack(f"<{dimensions}Q")[::-1]
    number, offset = cursor.unpack("<IQ")
    if number not in _TYPES:
        raise cursor.fault(f"gives {name} the type {number}")
    kind, block, block_bytes = _TYPES[number]
    if not prod(shape) or (shape[-1] if dimensions > 1 else 1) % block:
        raise cursor.fault(f"gives {name} of type {kind} the shape {shape}")
    return Info(name, kind, shape, prod(shape[1:]) // block * block_bytes, offset)
