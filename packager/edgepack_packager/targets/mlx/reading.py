"""Reads a finished variant back: its own headers and config.json, nothing of what the writer planned."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from edgepack.decoder import Decoder
from edgepack.errors import BuildError, SourceError
from edgepack_packager.safetensors import Entry, SafetensorsFile
from edgepack_packager.strictjson import read_object
from edgepack_packager.targets.mlx.layout import module, parameter
from edgepack_packager.targets.mlx.quantize import GROUP, dequantize
from edgepack_packager.weights import Float32

_ROUNDING = {"F32": 0.0, "F16": 2.0**-11, "BF16": 2.0**-8}
"""Half a unit in the last place over the value, of a normal number."""


class MlxReader:
    """A finished variant, read back tensor by tensor."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self._folder = folder
        self._shapes = dict(decoder.tensors())
        self._raw: dict[Path, int] = {}
        with ExitStack() as stack:
            self._bits = _bits(folder)
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
                self._raw[file.path] = os.open(file.path, os.O_RDONLY)
                stack.callback(os.close, self._raw[file.path])
                tensors |= dict.fromkeys(file.entries, file)
            return tensors
        except (SourceError, KeyError) as error:
            raise BuildError(f"{folder} cannot be read back: {error}") from None

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor, dequantised: float32.

        Raises ``BuildError`` where the file lacks the tensor or gives it another shape.
        """
        shape = self._shapes[name]
        if not self._is_quantized(name):
            self._entry(parameter(name), shape)
            return self._floats(parameter(name), start, stop)
        target = module(name)
        groups = (shape[0], shape[1] // GROUP)
        packed = self._entry(f"{target}.weight", (shape[0], shape[1] * self._bits // 32))
        for part in ("scales", "biases"):
            self._entry(f"{target}.{part}", groups)
        row_bytes = math.prod(packed.shape[1:]) * 4
        descriptor = self._raw[self._tensors[f"{target}.weight"].path]
        data = os.pread(descriptor, (stop - start) * row_bytes, packed.offset + start * row_bytes)
        if packed.dtype != "U32" or len(data) != (stop - start) * row_bytes:
            raise BuildError(f"{self._folder}: {target}.weight is {packed.dtype}, or shorter than its header says.")
        scales = self._floats(f"{target}.scales", start, stop)
        biases = self._floats(f"{target}.biases", start, stop)
        return dequantize(np.frombuffer(data, np.uint8).reshape(-1, row_bytes), scales, biases, self._bits)

    def bound(self, name: str) -> float:
        """Return the largest |w' - w| / |w| of a row (L2 norms) that the tensor's scheme allows.

        A float type: half a unit in its last place, 0 for float32. A group of 64, in steps s of its grid: zero is on
        the grid, and the edge, of magnitude h >= H = 2**(bits - 1), is represented exactly. Any other element has an
        error of at most 1/2 and of at most its own magnitude; beyond the last level it is at most 1, at a magnitude of
        H or more. The ratio is worst where all 63 lie half-way between zero and one step:
        sqrt(63/4 / (H**2 + 63/4)), 0.444 for 4 bits and 0.031 for 8. Rounding scale and bias by a relative u moves an
        element w by at most u (|w| + 2 h s), so a row by u (1 + 2 sqrt(64)) = 17 u of its norm. float32 arithmetic
        adds less than 2**-16.
        """
        if not self._is_quantized(name):
            return _ROUNDING[self._entry(parameter(name), self._shapes[name]).dtype]
        shape = (self._shapes[name][0], self._shapes[name][1] // GROUP)
        rounding = _ROUNDING[self._entry(f"{module(name)}.scales", shape).dtype]
        halves = (GROUP - 1) / 4
        return math.sqrt(halves / (4.0 ** (self._bits - 1) + halves)) + (1 + 2 * math.sqrt(GROUP)) * rounding + 2.0**-16

    def floor(self, name: str) -> float:
        """Return the L2 error of a row that ``bound`` does not cover: what lies below f16's normal numbers.

        There a number, a scale and a bias are off by up to 2**-25 each; a scale is multiplied by up to 255 levels.
        """
        rows, *columns = self._shapes[name]
        quantized = self._is_quantized(name)
        held = f"{module(name)}.scales" if quantized else parameter(name)
        shape = (rows, columns[0] // GROUP) if quantized else self._shapes[name]
        if self._entry(held, shape).dtype != "F16":
            return 0.0
        return (2.0**self._bits if quantized else 1) * 2.0**-25 * math.sqrt(math.prod(columns))

    def close(self) -> None:
        """Close the files. Safe to call again."""
        self._closing.close()

    def _is_quantized(self, name: str) -> bool:
        return len(self._shapes[name]) == 2 and f"{module(name)}.scales" in self._tensors

    def _entry(self, tensor: str, shape: tuple[int, ...]) -> Entry:
        if tensor not in self._tensors:
            raise BuildError(f"{self._folder} lacks the tensor {tensor}.")
        entry = self._tensors[tensor].entries[tensor]
        if entry.shape != shape:
            raise BuildError(f"{self._folder}: {tensor} has the shape {entry.shape}, expected {shape}.")
        return entry

    def _floats(self, tensor: str, start: int, stop: int) -> Float32:
        try:
            return self._tensors[tensor].rows(tensor, start, stop)
        except SourceError as error:
            raise BuildError(f"{self._folder} cannot be read back: {error}") from None


def _bits(folder: Path) -> int:
    """Return the bits of the quantised tensors as config.json states them; 0 where it states none."""
    try:
        quantization = json.loads((folder / "config.json").read_bytes()).get("quantization")
        if quantization is None:
            return 0
        bits, group = quantization["bits"], quantization["group_size"]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(f"{folder / 'config.json'} cannot be read back: {error!r}") from None
    if bits not in (4, 8) or group != GROUP:
        raise BuildError(f"{folder / 'config.json'} names {bits} bits in groups of {group}.")
    return int(bits)
