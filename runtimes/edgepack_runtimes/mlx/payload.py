"""Checks a variant's folder in pure Python, before native code reads a byte of it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack_runtimes.mlx.config import SPELLINGS, Spelling, disagreement

MAX_HEADER_BYTES = 100_000_000
"""The bound that safetensors' own implementation sets."""

_ITEM_BYTES = {"U32": 4, "F32": 4, "F16": 2, "BF16": 2}
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (32, 64, 128)
_QUANTIZATION = frozenset({"bits", "group_size", "mode"})
_HINT = "Build the variant again."


@dataclass(frozen=True, slots=True)
class Tensor:
    """What a header says of a tensor: the dtype ("U32", "F32", "F16" or "BF16") and the shape."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Payload:
    """A checked folder: how it spells the tensors, the bits of each quantised module with the columns of its groups
    (none for an exact payload), the weight files, all tensors by name, and the dtype of those that are not packed."""

    spelling: Spelling
    packings: Mapping[str, tuple[int, int]]
    files: tuple[Path, ...]
    tensors: Mapping[str, Tensor]
    float_type: str


def read_payload(folder: Path, decoder: Decoder) -> Payload:
    """Check a folder against the decoder. Raises ``EngineError`` that names the file and the fault."""
    config = read_object(folder / "config.json")
    if clause := disagreement(config, decoder):
        raise _fault(folder / "config.json", clause)
    files = _weight_files(folder)
    tensors: dict[str, Tensor] = {}
    for file in files:
        found = read_header(file)
        if twice := sorted(tensors.keys() & found.keys()):
            raise _fault(file, f"the tensor {twice[0]} is in another file too")
        tensors |= found
    floats = {tensor.dtype for tensor in tensors.values()} - {"U32"}
    if len(floats) != 1:
        raise _fault(folder, f"the weights mix the types {', '.join(sorted(floats)) or 'of none'}")
    if decoder.wide and "F16" in floats:
        raise _fault(folder, "the weights are F16, and the model's activations exceed its range")
    quantized = {name.removesuffix(".scales") for name in tensors if name.endswith(".scales")}
    packings = _packings(folder / "config.json", config.get("quantization"), quantized)
    return Payload(SPELLINGS[config["model_type"]], packings, files, tensors, floats.pop())


def _packings(path: Path, quantization: object, modules: Set[str]) -> dict[str, tuple[int, int]]:
    """Return the bits of every module that has scales and the columns of its groups: those under its own name, or those
    of the whole model."""
    if quantization is None:
        return {}
    if not isinstance(quantization, dict):
        raise _fault(path, f"the quantization {quantization!r} is not an object")
    usual = _packing(path, {key: value for key, value in quantization.items() if key in _QUANTIZATION})
    own = {key: _packing(path, value) for key, value in quantization.items() if key not in _QUANTIZATION}
    if unknown := sorted(own.keys() - modules):
        raise _fault(path, f"the quantization names {unknown[0]}, which is no quantised module")
    return dict.fromkeys(modules, usual) | own


def _packing(path: Path, quantization: object) -> tuple[int, int]:
    if isinstance(quantization, dict) and quantization.keys() <= _QUANTIZATION:
        bits, group, mode = (quantization.get(key) for key in ("bits", "group_size", "mode"))
        if type(bits) is int and bits in _BITS and type(group) is int and group in _GROUPS and mode in (None, "affine"):
            return bits, group
    known = " or ".join(map(str, _GROUPS))
    raise _fault(path, f"the quantization {quantization!r} is not of 2 to 6 or 8 bits, affine, in groups of {known}")


def _weight_files(folder: Path) -> tuple[Path, ...]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return (folder / "model.safetensors",)
    if not index.exists():
        raise _fault(folder, "there is neither model.safetensors nor its index")
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise _fault(index, "weight_map does not map tensors to files")
    for name in weight_map.values():
        if not isinstance(name, str) or not name.endswith(".safetensors") or "/" in name or "\\" in name:
            raise _fault(index, f"{name!r} is not the plain name of a weight file")
    return tuple(folder / name for name in sorted(set(weight_map.values())))


def read_header(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file. Raises ``EngineError`` unless they cover its data exactly.

    The format (huggingface/safetensors, README "Format"): 8 bytes with the header's length, little-endian; the header
    in JSON; the tensors' bytes, without a hole or an overlap.
    """
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, MAX_HEADER_BYTES):
                raise _fault(path, f"its header of {length} bytes does not fit a file of {size}")
            header = _parse_object(file.read(length), path)
    except OSError as error:
        raise _fault(path, f"it cannot be read: {error.strerror}") from None
    header.pop("__metadata__", None)
    spans = sorted((*_span(path, name, entry), name) for name, entry in header.items())
    end = 0
    for begin, stop, name in spans:
        if begin != end:
            raise _fault(path, f"the tensor {name} begins at byte {begin}, expected {end}")
        end = stop
    if end != size - 8 - length:
        raise _fault(path, f"its tensors take {end} bytes, the file holds {size - 8 - length}")
    return {name: Tensor(header[name]["dtype"], tuple(header[name]["shape"])) for _, _, name in spans}


def _span(path: Path, name: str, entry: object) -> tuple[int, int]:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise _fault(path, f"the entry of {name} does not hold dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
        raise _fault(path, f"{name} has the dtype {dtype!r}, expected one of {', '.join(_ITEM_BYTES)}")
    if not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        raise _fault(path, f"{name} has the shape {shape!r} and the data_offsets {offsets!r}")
    if offsets[1] - offsets[0] != math.prod(shape) * _ITEM_BYTES[dtype]:
        raise _fault(path, f"{name} is {dtype} {shape}, which does not take {offsets[1] - offsets[0]} bytes")
    return offsets[0], offsets[1]


def _are_counts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 48 for item in value)


def read_object(path: Path) -> dict[str, Any]:
    """Return a file's JSON object. Raises ``EngineError`` that names the file and the fault."""
    try:
        return _parse_object(path.read_bytes(), path)
    except OSError as error:
        raise _fault(path, f"it cannot be read: {error.strerror}") from None


def _parse_object(data: bytes, path: Path) -> dict[str, Any]:
    try:
        value = json.loads(data, object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise _fault(path, f"it is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise _fault(path, "it holds no JSON object at its top")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _fault(path: Path, what: str) -> EngineError:
    return EngineError(f"{path}: {what}.", hint=_HINT)
