"""A layer's keys or values, in the memory of the device that computes with them: the engine works in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from edgepack.runtime import KvCache

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
    """Zeros [1, KV heads, context, head dimension] at first. ``device`` is "cpu" or "cuda".

    Raises ``MemoryError``, or the ``RuntimeError`` of onnxruntime, where they are not granted.
    """

    def __init__(self, shape: tuple[int, ...], kv_cache: KvCache, device: str) -> None:
        from onnxruntime import OrtValue

        zeros = np.zeros(shape, DTYPES[kv_cache])
        self._value = OrtValue.ortvalue_from_numpy(zeros, device, 0)
        # On the CPU the value is the array itself, elsewhere a copy.
        self._array = zeros if device == "cpu" else None

    def bind(self, binding: IOBinding, past: str, present: str) -> None:
        """Let the engine read the cache as one input and write it as one output."""
        binding.bind_ortvalue_input(past, self._value)
        binding.bind_ortvalue_output(present, self._value)

    def read(self, length: int) -> Numbers:
        """Return the first positions: [KV heads, length, head dimension]."""
        return self._whole()[0, :, :length]

    def write(self, values: Numbers) -> None:
        """Replace the first positions: [KV heads, length, head dimension]."""
        whole = self._whole()
        whole[0, :, : values.shape[1]] = values
        if self._array is None:
            self._value.update_inplace(whole)

    def _whole(self) -> Numbers:
        whole: Numbers = self._value.numpy() if self._array is None else self._array
        return whole
