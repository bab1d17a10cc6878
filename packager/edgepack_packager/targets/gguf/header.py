"""The bytes in front of the tensors: magic, version, counts, key-value pairs, tensor infos (ggml's docs/gguf.md)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.targets.gguf.layout import Layout, padded
from edgepack_packager.targets.gguf.recipe import FORMATS

MAGIC = b"GGUF"
VERSION = 3


@dataclass(frozen=True, slots=True)
class U32:
    """An unsigned 32-bit integer. Plain Python numbers would leave the width to be guessed."""

    value: int


@dataclass(frozen=True, slots=True)
class F32:
    """A 32-bit float."""

    value: float


Array = Sequence[str] | NDArray[np.float32] | NDArray[np.int32]
Value = str | bool | U32 | F32 | Array

# gguf_metadata_value_type
_U32, _I32, _F32, _BOOL, _STRING, _ARRAY = 4, 5, 6, 7, 8, 9


def encode(metadata: Mapping[str, Value], layout: Layout) -> bytes:
    """Return everything before the tensor data, padded to the alignment."""
    parts = [MAGIC, struct.pack("<IQQ", VERSION, len(layout.tensors), len(metadata))]
    for key, value in metadata.items():
        parts += [_string(key), *_value(value)]
    for tensor in layout.tensors:
        # ggml counts the fastest dimension first
        shape = (tensor.stated or tensor.shape)[::-1]
        parts.append(_string(tensor.name))
        number = FORMATS[tensor.kind].number
        parts.append(struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, number, tensor.offset))
    header = b"".join(parts)
    return header.ljust(padded(len(header)), b"\0")


def _value(value: Value) -> Iterable[bytes]:
    match value:
        case bool():
            return [struct.pack("<I?", _BOOL, value)]
        case str():
            return [struct.pack("<I", _STRING), _string(value)]
        case U32(number):
            return [struct.pack("<II", _U32, number)]
        case F32(number):
            return [struct.pack("<If", _F32, number)]
        case np.ndarray():
            kind = _F32 if value.dtype == np.float32 else _I32
            return [struct.pack("<IIQ", _ARRAY, kind, len(value)), value.tobytes()]
        case _:
            return [struct.pack("<IIQ", _ARRAY, _STRING, len(value)), *map(_string, value)]


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
