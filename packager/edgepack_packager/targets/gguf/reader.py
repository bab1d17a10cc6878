"""Reads a finished GGUF file back, tensor by tensor, from its own header and with an independent dequantiser."""

from __future__ import annotations

import mmap
import os
from math import sqrt
from pathlib import Path

import numpy as np

from edgepack.decoder import Decoder
from edgepack.errors import BuildError
from edgepack_packager.targets.gguf.layout import gguf_name, is_rotated
from edgepack_packager.targets.gguf.parse import Info, parse
from edgepack_packager.weights import Float32

# Half precision: unit roundoff, and half of the smallest subnormal.
_HALF = 2.0**-11
_TINY = 2.0**-25


class GgufReader:
    """A variant that is read back. It holds the header's tables; rows are read with pread when they are asked for."""

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self._path = path
        self._shapes = dict(decoder.tensors())
        self._head_dim = decoder.head_dim
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise BuildError(f"{path} cannot be read: {error.strerror}.") from None
        try:
            self._tensors = self._header()
        except BaseException:
            self.close()
            raise

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor, dequantised: float32.

        Raises ``BuildError`` where the file lacks the tensor or has it in another shape.
        """
        tensor = self._tensor(name)
        if not 0 <= start <= stop <= tensor.shape[0]:
            raise ValueError(f"rows {start} to {stop} of {name}, which has {tensor.shape[0]}")
        if not is_rotated(name):
            return self._read(tensor, start, stop)
        first, last = start // self._head_dim, -(-stop // self._head_dim)
        heads = self._read(tensor, first * self._head_dim, last * self._head_dim)
        half, within = np.divmod(np.arange(start, stop) % self._head_dim, self._head_dim // 2)
        # Element i of a half-split head is GGUF's 2 i in the first half, and 2 i + 1 in the second.
        head = np.arange(start, stop) // self._head_dim - first
        return np.ascontiguousarray(heads[head * self._head_dim + 2 * within + half])

    def bound(self, name: str) -> float:
        """Return the largest relative error of a row that the tensor's type allows, as L2 norms.

        A row may exceed it by ``floor``, which matters only where a block is tiny. The bound of a block holds for a row
        of blocks. With n the elements of a block and m its largest magnitude, so that its norm is at least m:

        - f32: 0. bf16, f16: half a unit in the last place, 2**-8 and 2**-11.
        - q8_0, q5_0, q4_0: step s = m/127, m/16, m/8. Every value but the largest is off by at most s/2 (a value
          at the far end may be clipped by s, but is at least 7/8 of m and so no worse in proportion), which makes
          sqrt(n - 1) s / (2 m), and 2**-11 for the scale in half precision.
        - q5_1: step (max - min)/31, and the norm is at least (max - min)/sqrt(2): sqrt(n) sqrt(2) / (2 * 31), and
          2**-11 each for scale and minimum.
        - q4_K, q5_K: sub-blocks of 32 with 15 or 31 steps. The engine's search for scale and minimum trades the error
          of one value against others', so a whole step is allowed: sqrt(32) sqrt(2) / steps. Scales and minima have
          6 bits, 63 steps for 8 sub-blocks: half such a step each, over the whole block of 256, is 16/63 of m. The two
          add in squares.
        - q6_K: sub-blocks of 16, step m/32 (whole, as above), sqrt(16)/32; scales in 8 bits: 16/256.
        """
        return _BOUNDS[self._tensor(name).type]

    def floor(self, name: str) -> float:
        """Return the L2 error of a row that ``bound`` does not cover: half-precision scales have a smallest value.

        A scale is off by at most 2**-25 below 2**-14, times the largest number that it multiplies.
        """
        tensor = self._tensor(name)
        return _FACTORS[tensor.type] * _TINY * sqrt(tensor.shape[1] if len(tensor.shape) == 2 else 1)

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _header(self) -> dict[str, Info]:
        if os.fstat(self._descriptor).st_size == 0:
            raise BuildError(f"{self._path} is empty.", hint="Build it again.")
        with mmap.mmap(self._descriptor, 0, prot=mmap.PROT_READ) as data, memoryview(data) as view:
            return parse(view, str(self._path)).tensors

    def _tensor(self, name: str) -> Info:
        tensor = self._tensors.get(gguf_name(name))
        if tensor is None or tensor.shape != self._shapes.get(name):
            found = "lacks" if tensor is None else f"has, in the shape {tensor.shape},"
            raise BuildError(f"{self._path} {found} the tensor {gguf_name(name)} for {name}.")
        return tensor

    def _read(self, tensor: Info, start: int, stop: int) -> Float32:
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        size = (stop - start) * tensor.row_bytes
        data = os.pread(self._descriptor, size, tensor.start + start * tensor.row_bytes)
        if len(data) != size:
            raise BuildError(f"{self._path} ended inside {tensor.name}.")
        rows = np.frombuffer(data, np.uint8).reshape(stop - start, tensor.row_bytes)
        values: Float32 = dequantize(rows, GGMLQuantizationType[tensor.type])
        return values.reshape(stop - start, *tensor.shape[1:])


def _k_bound(step: float, scale: float) -> float:
    return sqrt(step**2 + scale**2) + 2 * _HALF


_BOUNDS = {
    "F32": 0.0,
    "BF16": 2.0**-8,
    "F16": _HALF,
    "Q8_0": sqrt(31) / (2 * 127) + _HALF,
    "Q5_0": sqrt(31) / (2 * 16) + _HALF,
    "Q4_0": sqrt(31) / (2 * 8) + _HALF,
    "Q5_1": sqrt(32) * sqrt(2) / (2 * 31) + 2 * _HALF,
    "Q4_K": _k_bound(sqrt(32) * sqrt(2) / 15, 16 / 63),
    "Q5_K": _k_bound(sqrt(32) * sqrt(2) / 31, 16 / 63),
    "Q6_K": _k_bound(sqrt(16) / 32, 16 / 256),
}

# The largest numbers that a half-precision scale (and, added, a half-precision minimum) multiplies.
_FACTORS = {
    "F32": 0,
    "BF16": 0,
    "F16": 1,
    "Q8_0": 127,
    "Q5_0": 16,
    "Q4_0": 8,
    "Q5_1": 31 + 1,
    "Q4_K": 63 * 15 + 63,
    "Q5_K": 63 * 31 + 63,
    "Q6_K": 128 * 32,
}
