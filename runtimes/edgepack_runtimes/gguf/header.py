"""A strict reading of a GGUF header, before native code sees the file: a malformed one can end the whole process.

The format is that of ggml's docs/gguf.md, version 3, little-endian. Nothing is allocated by a count that the file
claims: every count is checked against the bytes that are left. A file that llama.cpp's gguf-split cut into parts is
read whole, for llama.cpp loads all of them by the name of the first.
"""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Final

from edgepack.errors import EngineError

_MAGIC: Final = b"GGUF"
_STRING: Final = 8
_ARRAY: Final = 9
# gguf_type: the struct code of each scalar. 8 is a string, 9 an array.
_SCALARS: Final = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_MAX_ENTRIES: Final = 1 << 16
_MAX_DIMENSIONS: Final = 4
# What is longer than the layers that llama.cpp allows is a vocabulary's.
_MAX_VALUES: Final = 512
_MAX_TENSOR_NAME: Final = 63
_DEFAULT_ALIGNMENT: Final = 32
# A fixed-size row in the header is at least this long: name length, dimension count, type, offset.
_MIN_TENSOR: Final = 24
_MIN_KEY: Final = 13
# llama_split_path
_ENDING: Final = "-{:05}-of-{:05}.gguf"

TYPES: Final[Mapping[int, tuple[str, int, int]]] = {
    0: ("f32", 1, 4),
    1: ("f16", 1, 2),
    2: ("q4_0", 32, 18),
    3: ("q4_1", 32, 20),
    6: ("q5_0", 32, 22),
    7: ("q5_1", 32, 24),
    8: ("q8_0", 32, 34),
    10: ("q2_k", 256, 84),
    11: ("q3_k", 256, 110),
    12: ("q4_k", 256, 144),
    13: ("q5_k", 256, 176),
    14: ("q6_k", 256, 210),
    16: ("iq2_xxs", 256, 66),
    17: ("iq2_xs", 256, 74),
    18: ("iq3_xxs", 256, 98),
    19: ("iq1_s", 256, 50),
    20: ("iq4_nl", 32, 18),
    21: ("iq3_s", 256, 110),
    22: ("iq2_s", 256, 82),
    23: ("iq4_xs", 256, 136),
    29: ("iq1_m", 256, 56),
    30: ("bf16", 1, 2),
    34: ("tq1_0", 256, 54),
    35: ("tq2_0", 256, 66),
    39: ("mxfp4", 32, 17),
    41: ("q1_0", 128, 18),
    42: ("q2_0", 64, 18),
}
"""ggml_type to (name, elements of a block, bytes of a block), for the types that ggml multiplies by."""

Scalar = int | float | bool | str


@dataclass(frozen=True, slots=True)
class Array:
    """An array in the metadata: its gguf_type, its length, and the elements of one that has a number for each layer."""

    kind: int
    length: int
    values: tuple[int | float | bool, ...] = ()


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry: ``shape`` in ggml's order (row length first), ``offset`` in bytes from ``file``'s start."""

    file: Path
    name: str
    shape: tuple[int, ...]
    type_name: str
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Header:
    """Metadata and tensor table of a GGUF file; of one in parts the first's metadata and all tensors."""

    metadata: Mapping[str, Scalar | Array]
    tensors: tuple[Tensor, ...]


def read(path: Path) -> Header:
    """Read the header of a file, or of all parts by the first.

    Raises ``EngineError``, naming the file and the field, for anything that is not sound.
    """
    first = _read(path)
    count = first.metadata.get("split.count", 1)
    if type(count) is not int or count < 2:
        return first
    ending = _ENDING.format(1, count)
    if not path.name.endswith(ending):
        raise damaged(path, f"it is one of {count} parts, and its name does not end with {ending}")
    stem = path.name.removesuffix(ending)
    others = [_read(path.with_name(stem + _ENDING.format(number, count))) for number in range(2, count + 1)]
    return Header(first.metadata, tuple(tensor for part in (first, *others) for tensor in part.tensors))


def _read(path: Path) -> Header:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
            return _Reader(path, view).header()
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        raise EngineError(f"{path} cannot be read: {error}.", hint="Check that the bundle is complete.") from error


def main_type(header: Header) -> str:
    """Return the element type that holds the most bytes."""
    sizes: Counter[str] = Counter()
    for tensor in header.tensors:
        sizes[tensor.type_name] += tensor.nbytes
    return sizes.most_common(1)[0][0]


class _Reader:
    def __init__(self, path: Path, view: mmap.mmap) -> None:
        self._path = path
        self._view = view
        self._size = len(view)
        self._at = 0
        self._place = "the header"

    def header(self) -> Header:
        if self._take(4) != _MAGIC:
            raise self._fault("the file does not begin with GGUF")
        version = self._scalar("I")
        if version != 3:
            raise self._fault(f"GGUF version {version} is not 3")
        n_tensors, n_keys = int(self._scalar("Q")), int(self._scalar("Q"))
        if n_keys > min(_MAX_ENTRIES, self._left // _MIN_KEY):
            raise self._fault(f"{n_keys} metadata entries do not fit")
        if n_tensors > min(_MAX_ENTRIES, self._left // _MIN_TENSOR):
            raise self._fault(f"{n_tensors} tensors do not fit")
        metadata = self._metadata(n_keys)
        alignment = metadata.get("general.alignment", _DEFAULT_ALIGNMENT)
        if type(alignment) is not int or not 8 <= alignment <= 1 << 16 or alignment & (alignment - 1):
            raise self._fault(f"general.alignment is {alignment}")
        return Header(metadata, self._tensors(n_tensors, alignment))

    def _metadata(self, count: int) -> dict[str, Scalar | Array]:
        metadata: dict[str, Scalar | Array] = {}
        for index in range(count):
            self._place = f"metadata entry {index}"
            key = self._string()
            if not key or key in metadata:
                raise self._fault(f"the key {key!r} is empty or a duplicate")
            self._place = f"the metadata key {key!r}"
            metadata[key] = self._value(int(self._scalar("I")))
        return metadata

    def _value(self, kind: int) -> Scalar | Array:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        if kind not in _SCALARS:
            raise self._fault(f"type {kind} does not exist")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> Array:
        kind, length = int(self._scalar("I")), int(self._scalar("Q"))
        if kind == _STRING:
            self._skip_strings(length)
        elif kind not in _SCALARS:
            raise self._fault(f"an array of type {kind} does not exist")
        elif length <= _MAX_VALUES:
            return Array(kind, length, tuple(self._scalar(_SCALARS[kind]) for _ in range(length)))
        else:
            self._skip(length * struct.calcsize(_SCALARS[kind]))
        return Array(kind, length)

    def _skip_strings(self, count: int) -> None:
        # The one long loop of a header, hundreds of thousands of tokens and merges: locals, and one check at its end.
        if count > self._left // 8:
            raise self._fault(f"{count} strings do not fit")
        length_at, view, at, end = struct.Struct("<Q").unpack_from, self._view, self._at, self._size - 8
        for _ in range(count):
            if at > end:
                raise self._fault("the file ends inside it")
            at += 8 + length_at(view, at)[0]
        self._at = at
        self._skip(0)

    def _tensors(self, count: int, alignment: int) -> tuple[Tensor, ...]:
        entries = [self._tensor(index) for index in range(count)]
        if len({entry.name for entry in entries}) != count:
            raise self._fault("a tensor's name is a duplicate")
        start = _padded(self._at, alignment)
        expected = 0
        for entry in entries:
            self._place = f"the tensor {entry.name!r}"
            # ggml wants the data in the order of the table, without holes.
            if entry.offset != expected:
                raise self._fault(f"its offset is {entry.offset}, {expected} is next")
            if start + entry.offset + entry.nbytes > self._size:
                raise self._fault("its data end after the file's end")
            expected += _padded(entry.nbytes, alignment)
        return tuple(
            Tensor(self._path, entry.name, entry.shape, entry.type_name, start + entry.offset, entry.nbytes)
            for entry in entries
        )

    def _tensor(self, index: int) -> Tensor:
        self._place = f"tensor {index}"
        name = self._string()
        if not 0 < len(name.encode(errors="surrogateescape")) <= _MAX_TENSOR_NAME:
            raise self._fault("its name is empty or longer than 63 bytes")
        self._place = f"the tensor {name!r}"
        dimensions = int(self._scalar("I"))
        if not 1 <= dimensions <= _MAX_DIMENSIONS:
            raise self._fault(f"it has {dimensions} dimensions")
        shape = tuple(int(self._scalar("Q")) for _ in range(dimensions))
        kind, offset = int(self._scalar("I")), int(self._scalar("Q"))
        if kind not in TYPES:
            raise self._fault(f"its element type {kind} is not one that ggml multiplies by")
        type_name, block, block_bytes = TYPES[kind]
        if min(shape) < 1 or prod(shape) > self._size * 8 or shape[0] % block:
            raise self._fault(f"its shape {shape} does not fit {type_name}")
        return Tensor(self._path, name, shape, type_name, offset, prod(shape) // block * block_bytes)

    def _string(self) -> str:
        return self._take(int(self._scalar("Q"))).decode(errors="surrogateescape")

    def _scalar(self, code: str) -> int | float | bool:
        value: int | float | bool = struct.unpack("<" + code, self._take(struct.calcsize("<" + code)))[0]
        return value

    def _take(self, count: int) -> bytes:
        start = self._at
        self._skip(count)
        return self._view[start : start + count]

    def _skip(self, count: int) -> None:
        if count > self._left:
            raise self._fault("the file ends inside it")
        self._at += count

    @property
    def _left(self) -> int:
        return self._size - self._at

    def _fault(self, what: str) -> EngineError:
        return damaged(self._path, f"{self._place}: {what}")


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def damaged(path: Path, what: str) -> EngineError:
    """Return the error for a file that is not what it should be."""
    return EngineError(f"{path} is not a sound GGUF file of this model: {what}.", hint="Build or download it again.")
