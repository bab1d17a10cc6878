"""Reads one safetensors file strictly, some rows of one tensor at a time.

The format (huggingface/safetensors, README "Format"): 8 bytes, the header's length N as an unsigned little-endian
integer; N bytes of JSON that map each tensor's name to its dtype, shape and [begin, end) in the data; the data, which
the tensors cover from its first byte to its last, without a hole or an overlap.

Reading is by ``pread``: the pages of a mapped file would count as this process's memory.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint.strictjson import advice, open_plain, parse_object
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import read_at

# The bound that the format's own implementation sets.
MAX_HEADER_BYTES = 100_000_000

# What is read, and the type that holds its values; a float64 is rounded, as wherever it is loaded to be computed with.
FLOATS: Mapping[str, str] = {"F64": "f32", "F32": "f32", "F16": "f16", "BF16": "bf16"}
_STORED: Mapping[str, str] = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}

_BITS: Mapping[str, int] = {
    dtype: bits
    for bits, dtypes in {
        4: ("F4",),
        6: ("F6_E2M3", "F6_E3M2"),
        8: ("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"),
        16: ("U16", "I16", "F16", "BF16"),
        32: ("U32", "I32", "F32"),
        64: ("U64", "I64", "F64", "C64"),
    }.items()
    for dtype in dtypes
}

_DAMAGED = "Fetch the file again: it is damaged or was not downloaded completely."


@dataclass(frozen=True, slots=True)
class Entry:
    """A tensor of a file: its dtype as the file spells it ("BF16"), its shape, and its first byte in the file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int


class SafetensorsFile:
    """An open file: ``entries`` by tensor name. The descriptor stays open until ``close``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._descriptor = open_plain(path)
        except OSError as error:
            raise SourceError(f"{path} cannot be opened: {error.strerror}.") from None
        try:
            self.entries = _read_entries(self._descriptor, path)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._descriptor)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) as float32: [stop - start, columns], or [stop - start] of a vector.

        Raises ``UnsupportedModelError`` where the tensor is not F64, F32, F16 or BF16.
        """
        entry = self.entries[name]
        if entry.dtype not in FLOATS:
            raise UnsupportedModelError(
                f"{self.path}: the tensor {name} is stored as {entry.dtype}; edgepack reads F64, F32, F16 and BF16.",
                hint="Convert the original, unquantized checkpoint.",
            )
        if not 0 <= start <= stop <= entry.shape[0]:
            raise ValueError(f"rows [{start}, {stop}) of {name}, which has {entry.shape[0]}")
        shape = (stop - start, *entry.shape[1:])
        row_bytes = math.prod(entry.shape[1:]) * _BITS[entry.dtype] // 8
        data = self._read(entry.offset + start * row_bytes, (stop - start) * row_bytes)
        return _to_float32(data, entry.dtype).reshape(shape)

    def _read(self, offset: int, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            try:
                part = read_at(self._descriptor, size, offset)
            except OSError as error:
                raise SourceError(f"{self.path} cannot be read: {error.strerror}.") from None
            if not part:
                raise SourceError(f"{self.path} became shorter while it was read.", hint="Start the build again.")
            parts.append(part)
            offset, size = offset + len(part), size - len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def _to_float32(data: bytes, dtype: str) -> Float32:
    if dtype == "BF16":
        from edgepack_packager.checkpoint import kernels

        stored = np.frombuffer(data, "<u2")
        bits = np.empty(len(stored), np.uint32)
        kernels.widen(stored, bits)
        return bits.view(np.float32)
    with np.errstate(over="ignore"):  # what float32 cannot hold is refused as the infinity that it becomes
        return np.frombuffer(data, _STORED[dtype]).astype(np.float32)


def _read_entries(descriptor: int, path: Path) -> dict[str, Entry]:
    try:
        size = os.fstat(descriptor).st_size
        head = read_at(descriptor, 8, 0)
        length = int.from_bytes(head, "little")
        if len(head) < 8:
            raise SourceError(f"{path} has {size} bytes: too short for a safetensors file.", hint=_DAMAGED)
        if length > MAX_HEADER_BYTES:
            raise SourceError(
                f"{path} is not a safetensors file: its header would have {length} bytes, above {MAX_HEADER_BYTES}.",
                hint=advice(read_at(descriptor, 64, 0), _DAMAGED),
            )
        if 8 + length > size:
            raise _wrong_size(path, 8 + length, size)
        text = read_at(descriptor, length, 8)
    except OSError as error:
        raise SourceError(f"{path} cannot be read: {error.strerror}.") from None
    if not text.startswith(b"{"):
        raise SourceError(f"{path} is not a safetensors file: its header is not JSON.", hint=_DAMAGED)
    header = parse_object(text, f"{path}: the header")
    if (metadata := header.pop("__metadata__", None)) is not None:  # mlx writes null
        _check_metadata(metadata, path)
    spans = {name: _parse_entry(value, f"{path}: the tensor {name}") for name, value in header.items()}
    end = 0
    for name, (_, _, begin, stop) in sorted(spans.items(), key=lambda item: item[1][2:]):
        if begin != end:
            what = "overlaps the one before it" if begin < end else "leaves a hole before it"
            raise SourceError(f"{path}: the tensor {name} starts at byte {begin} and {what} ({end}).", hint=_DAMAGED)
        end = stop
    if 8 + length + end != size:
        raise _wrong_size(path, 8 + length + end, size)
    return {name: Entry(dtype, shape, 8 + length + begin) for name, (dtype, shape, begin, _) in spans.items()}


def _parse_entry(value: Any, place: str) -> tuple[str, tuple[int, ...], int, int]:
    """Check one tensor's description and return its dtype, shape, begin and end."""
    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise SourceError(f"{place}: its description must have dtype, shape and data_offsets.", hint=_DAMAGED)
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _BITS:
        raise SourceError(f"{place}: the dtype {dtype!r} is not one of safetensors.", hint=_DAMAGED)
    if not _are_sizes(shape):
        raise SourceError(f"{place}: the shape {shape!r} is not a list of sizes.", hint=_DAMAGED)
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise SourceError(f"{place}: the data_offsets {offsets!r} are not two offsets.", hint=_DAMAGED)
    begin, end = offsets
    bits = math.prod(shape) * _BITS[dtype]
    if bits % 8 or end - begin != bits // 8:
        raise SourceError(
            f"{place}: {dtype} {shape} takes {bits / 8:g} bytes, its data_offsets span {end - begin}.", hint=_DAMAGED
        )
    return dtype, tuple(shape), begin, end


def _are_sizes(value: Any) -> bool:
    # bool is a subclass of int, and JSON's true is no size.
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 63 for item in value)


def _check_metadata(metadata: Any, path: Path) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(item, str) for item in metadata.values()):
        raise SourceError(f"{path}: __metadata__ must map names to text.", hint=_DAMAGED)


def _wrong_size(path: Path, expected: int, actual: int) -> SourceError:
    what = "is truncated" if actual < expected else "has bytes after its last tensor"
    return SourceError(f"{path} {what}: expected {expected} bytes, found {actual}.", hint=_DAMAGED)
