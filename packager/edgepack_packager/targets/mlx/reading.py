"""Reads a finished variant back: its own headers and config.json, nothing of what the writer planned."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.errors import BuildError, SourceError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.safetensors import Entry, SafetensorsFile
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import BINARY, read_at
from edgepack_packager.targets import FloatType, Form, kv_cache
from edgepack_packager.targets.kv_cache import Cache
from edgepack_packager.targets.mlx.forms import BITS, GROUP, GROUPS
from edgepack_packager.targets.mlx.model_types import MODEL_TYPES, OWN, ModelType
from edgepack_packager.targets.mlx.names import Place, dimensions, place, stored_shapes
from edgepack_packager.targets.mlx.quantize import dequantize

_FLOATS: dict[str, FloatType] = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Half a unit in the last place over the value, of a normal number."""


class MlxReader:
    """A finished variant, read back tensor by tensor."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self._folder = folder
        self._decoder = decoder
        self._shapes = dict(decoder.tensors())
        self._raw: dict[Path, int] = {}
        with ExitStack() as stack:
            self._kind, self._quantization = _kind_and_quantization(folder)
            self._stored = stored_shapes(self._kind, decoder)
            self._tensors = self._open(folder, stack)
            self._closing = stack.pop_all()

    def _open(self, folder: Path, stack: ExitStack) -> dict[str, SafetensorsFile]:
        try:
            names = ["model.safetensors"]
            if not (folder / names[0]).exists():
                names = sorted(set(read_object(folder / "model.safetensors.index.json")["weight_map"].values()))
            tensors: dict[str, SafetensorsFile] = {}
            for name in names:
                file = SafetensorsFile(folder / name)
                stack.callback(file.close)
                self._raw[file.path] = os.open(file.path, os.O_RDONLY | BINARY)
                stack.callback(os.close, self._raw[file.path])
                tensors |= dict.fromkeys(file.entries, file)
            return tensors
        except (SourceError, KeyError) as error:
            raise BuildError(f"{folder} cannot be read back: {error}") from None

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor, dequantised: float32.

        Raises ``BuildError`` where the file lacks the tensor or gives it another shape.
        """
        where = place(self._kind, self._decoder, name)
        start, stop = where.first + start, where.first + stop
        rows, *columns = self._stored[where.module, where.parameter]
        if not self._is_quantized(where):
            stated = dimensions(self._decoder, where.tensor, (rows, *columns))
            self._entry(where.tensor, stated)
            if len(stated) > 2:  # a convolution's kernel, which is small
                return self._floats(where.tensor, 0, stated[0]).reshape(-1)[start:stop]
            stored = self._floats(where.tensor, start, stop)
            return stored + np.float32(self._kind.gain_offset) if name.endswith("norm") else stored
        bits, group = self._packing(where)
        packed = self._entry(where.tensor, (rows, columns[0] * bits // 32))
        row_bytes = math.prod(packed.shape[1:]) * 4
        descriptor = self._raw[self._tensors[where.tensor].path]
        data = read_at(descriptor, (stop - start) * row_bytes, packed.offset + start * row_bytes)
        if packed.dtype != "U32" or len(data) != (stop - start) * row_bytes:
            raise BuildError(f"{self._folder}: {where.tensor} is {packed.dtype}, or shorter than its header says.")
        for part in ("scales", "biases"):
            self._entry(f"{where.module}.{part}", (rows, columns[0] // group))
        scales = self._floats(f"{where.module}.scales", start, stop)
        biases = self._floats(f"{where.module}.biases", start, stop)
        return dequantize(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), scales, biases, bits)

    def form(self, name: str) -> Form:
        """Return how the file stores a canonical tensor. Raises ``BuildError`` where the file lacks it."""
        where = place(self._kind, self._decoder, name)
        if not self._is_quantized(where):
            stored = _FLOATS[self._entry(where.tensor).dtype]
            return Form(stored, 32 if stored == "f32" else 16)
        return Form("affine", *self._packing(where), _FLOATS[self._entry(f"{where.module}.scales").dtype])

    def bound(self, name: str) -> float:
        """Return the largest |w' - w| / |w| of a row (L2 norms) that the tensor's scheme allows.

        A float type: half a unit in its last place, 0 for float32. A group of n, in steps s of its grid: zero is on
        the grid, and the edge, of magnitude h >= H = 2**(bits - 1), is represented exactly. Any other element has an
        error of at most 1/2 and of at most its own magnitude; beyond the last level it is at most 1, at a magnitude of
        H or more. The ratio is worst where all n - 1 lie half-way between zero and one step:
        sqrt((n-1)/4 / (H**2 + (n-1)/4)), 0.444 for 4 bits in groups of 64 and 0.031 for 8. Rounding scale and bias by a
        relative u moves an element w by at most u (|w| + 2 h s), so a row by u (1 + 2 sqrt(n)) of its norm, 17 u for
        64. float32 arithmetic adds less than 2**-16.
        """
        where = place(self._kind, self._decoder, name)
        if not self._is_quantized(where):
            return _ROUNDING[self._entry(where.tensor).dtype]
        rounding = _ROUNDING[self._entry(f"{where.module}.scales").dtype]
        bits, group = self._packing(where)
        halves = (group - 1) / 4
        return math.sqrt(halves / (4.0 ** (bits - 1) + halves)) + (1 + 2 * math.sqrt(group)) * rounding + 2.0**-16

    def floor(self, name: str) -> float:
        """Return the L2 error of a row that ``bound`` does not cover.

        Below f16's normal numbers a number, a scale and a bias are off by up to 2**-25 each; a scale is multiplied by
        up to 255 levels. A gain g that is stored as g - 1 is off by a relative u of that, so by up to u beyond u |g|,
        and in float32 by 2**-24.
        """
        where = place(self._kind, self._decoder, name)
        size = math.sqrt(math.prod(self._shapes[name][1:]))
        if self._is_quantized(where):
            return (
                2.0 ** self._packing(where)[0] * 2.0**-25 * size
                if self._entry(f"{where.module}.scales").dtype == "F16"
                else 0.0
            )
        dtype = self._entry(where.tensor).dtype
        small = 2.0**-25 * size if dtype == "F16" else 0.0
        is_shifted = name.endswith("norm") and self._kind.gain_offset
        return small + _ROUNDING[dtype] + 2.0**-24 if is_shifted else small

    def cache(self, kind: KvCache) -> Cache | None:
        """Return what the engine's attention rounds with a KV cache of that type, None for nothing."""
        return None if kind == "f32" else kv_cache.half

    def close(self) -> None:
        """Close the files. Safe to call again."""
        self._closing.close()

    def _packing(self, where: Place) -> tuple[int, int]:
        """Return the bits of a quantised matrix and the columns of its groups: its module's, or those of all others."""
        return self._quantization.get(where.module, self._quantization[""])

    def _is_quantized(self, where: Place) -> bool:
        return where.parameter == "weight" and f"{where.module}.scales" in self._tensors

    def _entry(self, tensor: str, shape: tuple[int, ...] | None = None) -> Entry:
        """Return what a header says of a tensor, of that shape if one is given."""
        if tensor not in self._tensors:
            raise BuildError(f"{self._folder} lacks the tensor {tensor}.")
        entry = self._tensors[tensor].entries[tensor]
        if shape is not None and entry.shape != shape:
            raise BuildError(f"{self._folder}: {tensor} has the shape {entry.shape}, expected {shape}.")
        return entry

    def _floats(self, tensor: str, start: int, stop: int) -> Float32:
        try:
            return self._tensors[tensor].rows(tensor, start, stop)
        except SourceError as error:
            raise BuildError(f"{self._folder} cannot be read back: {error}") from None


def _kind_and_quantization(folder: Path) -> tuple[ModelType, dict[str, tuple[int, int]]]:
    """Return the model file that config.json names, and the bits of quantised modules with the columns of a group, by
    name; "" for all others."""
    path = folder / "config.json"
    try:
        config = json.loads(path.read_bytes())
        kinds = {kind.name: kind for kind in (*MODEL_TYPES, OWN)}
        kind, quantization = kinds[config["model_type"]], config.get("quantization") or {}
        named = {"": quantization} | {name: value for name, value in quantization.items() if isinstance(value, dict)}
        found = {name: (value.get("bits", 0), value.get("group_size", GROUP)) for name, value in named.items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(f"{path} cannot be read back: {error!r}") from None
    for bits, group in found.values():
        if bits not in (0, *BITS) or group not in GROUPS:
            raise BuildError(f"{path} names {bits} bits in groups of {group}.")
    return kind, found
