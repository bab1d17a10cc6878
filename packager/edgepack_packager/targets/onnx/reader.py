"""The reader: finds tensors by what ``model.onnx`` itself says of them, not by the layout that wrote them."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.errors import BuildError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import BINARY, read_at
from edgepack_packager.targets import Form, kv_cache
from edgepack_packager.targets.kv_cache import Cache
from edgepack_packager.targets.onnx import blocks
from edgepack_packager.targets.onnx.forms import BITS, SIZES, Blocks
from edgepack_packager.targets.onnx.layout import DATA_FILE, GRAPH_FILE

if TYPE_CHECKING:
    from onnx import TensorProto

_F16_BOUND = 2.0**-11

# Which input of an operator is the quantised matrix.
_WEIGHT = {"MatMulNBits": 1, "GatherBlockQuantized": 0}


@dataclass(frozen=True, slots=True)
class _Place:
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    offset: int


class OnnxReader:
    """A finished variant, read back tensor by tensor."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self._path = folder / GRAPH_FILE
        self._shapes = dict(decoder.tensors())
        self._places, self._forms = _contents(self._path)
        try:
            self._file = os.open(folder / DATA_FILE, os.O_RDONLY | BINARY)
        except OSError as error:
            raise BuildError(f"{folder / DATA_FILE} could not be read: {error.strerror}.") from error

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor, dequantised: float32."""
        shape = self._shape(name)
        scales = self._places.get(f"{name}.scales")
        weight = self._weight(name)
        if scales is None:
            if len(shape) == 1 and math.prod(weight.shape) == shape[0]:
                weight = replace(weight, shape=shape)  # a convolution's kernel is [channels, 1, length] there
            if weight.shape != shape:
                raise BuildError(f"{self._path}: {name} has the shape {list(weight.shape)} instead of {list(shape)}.")
            return self._read(name, weight, start, stop).astype(np.float32)
        form, count = self.form(name), math.prod(scales.shape[1:])
        if not weight.shape[0] == scales.shape[0] == shape[0]:
            raise BuildError(f"{self._path}: {name} has {weight.shape[0]} rows instead of {shape[0]}.")
        codes = self._read(name, weight, start, stop).view(np.uint8).reshape(stop - start, count, -1)
        factors = self._read(name, scales, start, stop).astype(np.float32).reshape(stop - start, count)
        zeros = np.full(factors.shape, 1 << form.bits - 1, np.uint8)
        if (stored := self._places.get(f"{name}.zeros")) is not None:
            zeros = blocks.unpack_zeros(self._read(name, stored, start, stop).view(np.uint8), count, form.bits)
        return blocks.dequantize(codes, factors, zeros, shape[1], form.bits)

    def form(self, name: str) -> Form:
        """Return how the file stores a canonical tensor. Raises ``BuildError`` where the file lacks it."""
        weight, scales = self._weight(name), self._places.get(f"{name}.scales")
        if scales is not None:
            return blocks.kind(self._blocks(name))
        return Form("f16", 16) if weight.dtype == np.float16 else Form("f32", 32)

    def bound(self, name: str) -> float:
        """Return the largest relative error of a row: 0 in f32, 2**-11 in f16, ``blocks.bound`` in quantised blocks."""
        form = self.form(name)
        if form.group > 1:
            return blocks.bound(self._blocks(name))
        return _F16_BOUND if form.kind == "f16" else 0.0

    def floor(self, name: str) -> float:
        """Return the L2 error of a row that ``bound`` does not cover: half of f16's smallest step for each element."""
        weight = self._weight(name)
        return 2.0**-25 * math.sqrt(math.prod(weight.shape[1:])) if weight.dtype == np.float16 else 0.0

    def cache(self, kind: KvCache) -> Cache | None:
        """Return what the engine's attention rounds with a KV cache of that type, None for nothing."""
        if kind != "q8":
            return None if kind == "f32" else kv_cache.half
        ending = ".cache.scales"
        places = {name: place for name, place in self._places.items() if name.endswith(ending)}
        return kv_cache.channels(
            {
                name.removesuffix(ending): self._read(name, place, 0, 1).astype(np.float32)[0, :, 0]
                for name, place in places.items()
            }
        )

    def close(self) -> None:
        """Close the data file."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._shapes:
            raise BuildError(f"The decoder has no tensor {name}.")
        return self._shapes[name]

    def _weight(self, name: str) -> _Place:
        place = self._places.get(name if name.endswith(".bias") else f"{name}.weight")
        if place is None:
            raise BuildError(f"{self._path} lacks the tensor {name}.")
        return place

    def _blocks(self, name: str) -> Blocks:
        form = self._forms.get(f"{name}.weight")
        if form is None:
            raise BuildError(f"{self._path} has scales for {name}, but no operator that reads its blocks.")
        return form

    def _read(self, name: str, place: _Place, start: int, stop: int) -> NDArray[np.generic]:
        row = math.prod(place.shape[1:]) * place.dtype.itemsize
        size = (stop - start) * row
        data = read_at(self._file, size, place.offset + start * row)
        if len(data) != size:
            raise BuildError(f"{self._path.name}.data ends before the rows {start} to {stop} of {name}.")
        return np.frombuffer(data, place.dtype).reshape(stop - start, *place.shape[1:])


def _contents(path: Path) -> tuple[dict[str, _Place], dict[str, Blocks]]:
    """Return where each initialiser of the data file lies, and how the operators that read quantised ones read them."""
    import onnx

    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # the parser's own error types are not part of its interface
        raise BuildError(f"{path} could not be read as an ONNX model: {error}.") from error
    external = onnx.TensorProto.EXTERNAL
    tensors = [tensor for tensor in model.graph.initializer if tensor.data_location == external]
    forms: dict[str, Blocks] = {}
    for node in model.graph.node:
        if node.op_type in _WEIGHT:
            sizes = {attribute.name: attribute.i for attribute in node.attribute}
            bits, size = sizes.get("bits"), sizes.get("block_size")
            if bits not in BITS or size not in SIZES:
                raise BuildError(f"{path}: {node.name} reads codes of {bits} bits in blocks of {size}.")
            asymmetric = any(name.endswith(".zeros") for name in node.input)
            forms[node.input[_WEIGHT[node.op_type]]] = Blocks(bits, size, asymmetric=asymmetric)
    return {tensor.name: _place(path, tensor) for tensor in tensors}, forms


def _place(path: Path, tensor: TensorProto) -> _Place:
    from onnx import helper

    where = {entry.key: entry.value for entry in tensor.external_data}
    if where.get("location") != DATA_FILE:
        raise BuildError(f"{path}: {tensor.name} lies in {where.get('location')!r} instead of {DATA_FILE}.")
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type))
    return _Place(dtype, tuple(tensor.dims), int(where.get("offset", 0)))
