"""A layer's keys or values, in the memory of the device that computes with them: the engine works in place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.device.memory import kv_bytes
from edgepack.errors import ContextTooLargeError
from edgepack.runtime import KvCache, Options

if TYPE_CHECKING:
    from onnxruntime import IOBinding

Numbers = NDArray[np.number[Any]]

DTYPES: Mapping[KvCache, type[np.number[Any]]] = MappingProxyType({"f32": np.float32, "f16": np.float16, "q8": np.int8})


class States:
    """What layers keep whatever the number of tokens, float32: what a step reads, and beside it what it writes.

    ``shapes`` are by the names of the input and the output, with a batch of one. Raises as ``Cache``.
    """

    def __init__(self, shapes: Mapping[tuple[str, str], tuple[int, ...]], device: str) -> None:
        from onnxruntime import OrtValue

        self._shapes = shapes

        def zeros(shape: tuple[int, ...]) -> OrtValue:
            return OrtValue.ortvalue_from_numpy(np.zeros(shape, np.float32), device, 0)

        self._read, self._written = ({names: zeros(shape) for names, shape in shapes.items()} for _ in range(2))

    def bind(self, binding: IOBinding) -> None:
        """Let the next step read what the one before wrote."""
        for past, present in self._shapes:
            binding.bind_ortvalue_input(past, self._read[past, present])
            binding.bind_ortvalue_output(present, self._written[past, present])

    def turn(self) -> None:
        """Take what a step wrote as what the next one reads."""
        self._read, self._written = self._written, self._read

    def copies(self) -> list[Numbers]:
        """Return what the next step reads, in order: [1, ...] each."""
        return [value.numpy().copy() for value in self._read.values()]

    def put(self, states: Sequence[Numbers] | None) -> None:
        """Replace what the next step reads with such copies; None: zeros, as before the first token."""
        if states is None:
            states = [np.zeros(shape, np.float32) for shape in self._shapes.values()]
        for value, state in zip(self._read.values(), states, strict=True):
            value.update_inplace(state)


class Cache:
    """Zeros [sequences, KV heads, context, head dimension] at first. ``device`` is "cpu" or "cuda".

    Raises ``MemoryError``, or the ``RuntimeError`` of onnxruntime, where they are not granted.
    """

    def __init__(self, shape: tuple[int, int, int, int], kv_cache: KvCache, device: str) -> None:
        from onnxruntime import OrtValue

        zeros = np.zeros(shape, DTYPES[kv_cache])
        self._shape, self._dtype, self._device = shape, zeros.dtype, device
        self._value = OrtValue.ortvalue_from_numpy(zeros, device, 0)
        # On the CPU the value is the array itself, elsewhere a copy.
        self._array = zeros if device == "cpu" else None

    def bind(self, binding: IOBinding, past: str, present: str) -> None:
        """Let the engine read the cache as one input and write it as one output."""
        binding.bind_ortvalue_input(past, self._value)
        binding.bind_ortvalue_output(present, self._value)

    def bind_rows(self, binding: IOBinding, past: str, present: str, rows: range) -> None:
        """Let the engine read and write the sequences of a range."""
        shape = (len(rows), *self._shape[1:])
        place = self._value.data_ptr() + rows.start * math.prod(shape[1:]) * self._dtype.itemsize
        binding.bind_input(past, self._device, 0, self._dtype.type, shape, place)
        binding.bind_output(present, self._device, 0, self._dtype.type, shape, place)

    def read(self, length: int, sequence: int = 0) -> Numbers:
        """Return the first positions of a sequence: [KV heads, length, head dimension]."""
        return self._whole()[sequence, :, :length]

    def write(self, values: Numbers, sequence: int = 0) -> None:
        """Replace the first positions of a sequence: [KV heads, length, head dimension]."""
        whole = self._whole()
        whole[sequence, :, : values.shape[1]] = values
        if self._array is None:
            self._value.update_inplace(whole)

    def _whole(self) -> Numbers:
        whole: Numbers = self._value.numpy() if self._array is None else self._array
        return whole


class StateRows:
    """What layers keep of each of several sequences, float32, whatever the number of tokens: what a step reads, and
    beside it what it writes.

    ``shapes`` are by the names of the input and the output, of one sequence. Raises as ``Cache``.
    """

    def __init__(self, shapes: Mapping[tuple[str, str], tuple[int, ...]], sequences: int, device: str) -> None:
        self._names = list(shapes)
        wanted = [(sequences, math.prod(shape)) for shape in shapes.values()]
        self._shapes = list(shapes.values())
        self._read, self._written = ([_Rows(each, device) for each in wanted] for _ in range(2))

    def bind(self, binding: IOBinding, rows: range) -> None:
        """Let the next step read and write the sequences of a range."""
        for (past, present), shape, read, written in zip(
            self._names, self._shapes, self._read, self._written, strict=True
        ):
            given = (len(rows), *shape)
            binding.bind_input(past, read.device, 0, np.float32, given, read.place(rows.start))
            binding.bind_output(present, written.device, 0, np.float32, given, written.place(rows.start))

    def keep(self, sequences: Sequence[int]) -> None:
        """Take what a step wrote of these as what the next one reads."""
        for read, written in zip(self._read, self._written, strict=True):
            read.put({each: written.row(each) for each in sequences})

    def copies(self, sequence: int) -> list[Numbers]:
        """Return what the next step reads of a sequence, in order."""
        return [read.row(sequence).copy() for read in self._read]

    def put(self, sequence: int, states: Sequence[Numbers] | None) -> None:
        """Replace what the next step reads of a sequence with such copies; None: zeros, as before the first token."""
        for place, read in enumerate(self._read):
            read.put({sequence: np.zeros(1, np.float32) if states is None else states[place]})


class _Rows:
    """A matrix, float32, with a row for each sequence."""

    def __init__(self, shape: tuple[int, int], device: str) -> None:
        from onnxruntime import OrtValue

        zeros = np.zeros(shape, np.float32)
        self.device, self._size = device, zeros.strides[0]
        self._value = OrtValue.ortvalue_from_numpy(zeros, device, 0)
        self._array = zeros if device == "cpu" else None

    def place(self, row: int) -> int:
        """Return the address of a row, on its device."""
        place: int = self._value.data_ptr() + row * self._size
        return place

    def row(self, row: int) -> Numbers:
        """Return a row; it may be the matrix's own."""
        whole: Numbers = self._value.numpy() if self._array is None else self._array
        found: Numbers = whole[row]
        return found

    def put(self, rows: Mapping[int, Numbers]) -> None:
        """Replace rows."""
        whole: Numbers = self._value.numpy() if self._array is None else self._array
        for row, values in rows.items():
            whole[row] = values
        if self._array is None:
            self._value.update_inplace(whole)


def new_cache(decoder: Decoder, options: Options, shape: tuple[int, int], device: str) -> Cache:
    """Return a cache of a layer for all that a session holds; ``shape`` are its KV heads and their dimension.

    Raises ``ContextTooLargeError`` where the memory is not granted.
    """
    heads, size = shape
    context, count = options.context, options.sequences
    try:
        return Cache((count, heads, context, size), options.kv_cache, device)
    except (MemoryError, RuntimeError):
        needed = kv_bytes(decoder, "onnx", options.kv_cache, context, sequences=count)
        owner, texts = "system" if device == "cpu" else "GPU", f" for each of {count} sequences" if count > 1 else ""
        raise ContextTooLargeError(
            f"The KV cache of {context} tokens{texts} needs {needed} bytes, which the {owner} does not grant.",
            hint=f"Load the model with a smaller context{' or fewer sequences' if count > 1 else ''}.",
        ) from None
