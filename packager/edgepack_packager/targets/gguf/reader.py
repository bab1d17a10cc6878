"""Reads a finished GGUF file back, tensor by tensor, from its own header and with an independent dequantiser."""

from __future__ import annotations

from math import sqrt
from pathlib import Path

import numpy as np

from edgepack.bundle.decoder import Decoder, layer_of
from edgepack.errors import BuildError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.checkpoint.gguf.names import Part, rotates
from edgepack_packager.checkpoint.gguf.parse import Info
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Form, kv_cache
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.tensors import factor, parts
from edgepack_packager.targets.gguf.tiles import moved_back
from edgepack_packager.targets.kv_cache import Cache

# Half precision: unit roundoff, and half of the smallest subnormal.
_HALF = 2.0**-11
_TINY = 2.0**-25

# Two roundings to float32: of a factor's product, and of its quotient.
_SCALED = 2.0**-22


class GgufReader:
    """A variant that is read back. It holds the header's tables; rows are read when they are asked for."""

    def __init__(self, path: Path, decoder: Decoder) -> None:
        self._path = path
        self._decoder = decoder
        self._shapes = dict(decoder.tensors())
        self._parts = parts(decoder)
        self._architecture = choose(decoder).name
        self._file = GgufFile(path, self._fault)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor, dequantised: float32.

        Raises ``BuildError`` where the file lacks the tensor or has it in another shape.
        """
        tensor = self._tensor(name)
        if not 0 <= start <= stop <= self._shapes[name][0]:
            raise ValueError(f"rows {start} to {stop} of {name}, which has {self._shapes[name][0]}")
        if rotates(name, self._architecture):
            rows = self._file.half_split(tensor, self._decoder.attention(layer_of(name)).head_dim, start, stop)
        else:
            rows = self._placed(tensor, self._parts[name], start, stop)
        if name.endswith("delta.decay"):
            return np.log(-rows)
        if columns := self._parts[name].columns:
            rows = moved_back(columns, rows)
        ratio = factor(self._decoder, name)
        return rows if ratio == 1 else rows / np.float32(ratio)

    def form(self, name: str) -> Form:
        """Return how the file stores a canonical tensor. Raises ``BuildError`` where the file lacks it."""
        return _FORMS[self._tensor(name).type]

    def bound(self, name: str) -> float:
        """Return the largest relative error of a row that the tensor's type allows, as L2 norms.

        A row may exceed it by ``floor``, which matters only where a block is tiny. The bound of a block holds for a row
        of blocks. With n the elements of a block and m its largest magnitude, so that its norm is at least m:

        - f32: 0. bf16, f16: half a unit in the last place, 2**-8 and 2**-11.
        - q8_0, q5_0, q4_0: step s = m/127, m/16, m/8. Every value but the largest is off by at most s/2 (a value
          at the far end may be clipped by s, but is at least 7/8 of m and so no worse in proportion), which makes
          sqrt(n - 1) s / (2 m), and 2**-11 for the scale in half precision.
        - q5_1, q4_1: step (max - min)/31 or /15, and the norm is at least (max - min)/sqrt(2): sqrt(n) sqrt(2) / (2 *
          31), and 2**-11 each for scale and minimum.
        - q4_K, q5_K: sub-blocks of 32 with 15 or 31 steps. The engine's search for scale and minimum trades the error
          of one value against others', so a whole step is allowed: sqrt(32) sqrt(2) / steps. Scales and minima have
          6 bits, 63 steps for 8 sub-blocks: half such a step each, over the whole block of 256, is 16/63 of m. The two
          add in squares.
        - q6_K: sub-blocks of 16, step m/32 (whole, as above), sqrt(16)/32; scales in 8 bits: 16/256. q3_K: the same
          with m/4, and scales in 6 bits. q2_K: as q4_K, with sub-blocks of 16, three steps, and 15 for the scales.
        - iq4_nl, iq4_xs: the widest step is 24 of 113 (whole, as above); scales of iq4_xs in 6 bits: 16/64. iq3_s: four
          magnitudes move together, by two steps of 2/15; scales in 4 bits, of odd numbers to 31: 16/31.
        - q1_0, q2_0: no weight is off by more than itself, or the mean magnitude: 1. Their rows lie on grids, which are
          held much closer.

        A tensor that is scaled in the file is rounded twice more: 2**-22. A decay is there as its exponential: its row
        is a number, which that moves by some 2**-24, beside ``floor``.
        """
        scaled = 0.0 if factor(self._decoder, name) == 1 else _SCALED
        return _BOUNDS[self._tensor(name).type] + scaled

    def floor(self, name: str) -> float:
        """Return the L2 error of a row that ``bound`` does not cover: half-precision scales have a smallest value.

        A scale is off by at most 2**-25 below 2**-14, times the largest number that it multiplies.
        """
        tensor = self._tensor(name)
        if name.endswith("delta.decay"):
            return 2.0**-22  # of an exponential and of its logarithm
        columns = tensor.shape[1] if len(tensor.shape) == 2 else 1
        return _FACTORS[tensor.type] * _TINY * sqrt(columns) / factor(self._decoder, name)

    def cache(self, kind: KvCache) -> Cache | None:
        """Return what the engine's attention rounds with a KV cache of that type, None for nothing."""
        return {"f32": None, "f16": kv_cache.half, "q8": kv_cache.blocks}[kind]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._file.close()

    def _placed(self, tensor: Info, part: Part, start: int, stop: int) -> Float32:
        """Return the rows of a part in canonical order, read as they lie together."""
        # a convolution's kernel is small
        whole = None if part.stated is None else self._file.rows(tensor, 0, part.stated[0]).reshape(-1)

        def read(first: int, last: int) -> Float32:
            place = part.place(first)
            end = place + last - first
            return self._file.rows(tensor, place, end) if whole is None else whole[place:end]

        found = [read(first, last) for first, last in part.runs(start, stop)] or [read(0, 0)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _tensor(self, name: str) -> Info:
        part = self._parts.get(name)
        tensor = self._file.tensors.get(part.name) if part else None
        if part is None or tensor is None or tensor.shape != (part.stated or part.shape):
            found = "lacks" if tensor is None else f"has, in the shape {tensor.shape},"
            raise BuildError(f"{self._path} {found} the tensor {part.name if part else '?'} for {name}.")
        return tensor

    def _fault(self, what: str) -> BuildError:
        return BuildError(f"{self._path} {what}.", hint="The file was damaged after it was written; build it again.")


_FORMS = {
    "F32": Form("f32", 32),
    "BF16": Form("bf16", 16),
    "F16": Form("f16", 16),
    "Q8_0": Form("q8_0", 8, 32),
    "Q5_0": Form("q5_0", 5, 32),
    "Q4_0": Form("q4_0", 4, 32),
    "Q4_1": Form("q4_1", 4, 32),
    "Q5_1": Form("q5_1", 5, 32),
    "Q1_0": Form("q1_0", 1, 128),
    "Q2_0": Form("q2_0", 2, 64),
    "IQ4_NL": Form("iq4_nl", 4, 32),
    "IQ4_XS": Form("iq4_xs", 4, 32),
    "IQ3_S": Form("iq3_s", 3, 32),
    "Q2_K": Form("q2_K", 2, 16),
    "Q3_K": Form("q3_K", 3, 16),
    "Q4_K": Form("q4_K", 4, 32),
    "Q5_K": Form("q5_K", 5, 32),
    "Q6_K": Form("q6_K", 6, 16),
}


def _k_bound(step: float, scale: float) -> float:
    return sqrt(step**2 + scale**2) + 2 * _HALF


_BOUNDS = {
    "F32": 0.0,
    "BF16": 2.0**-8,
    "F16": _HALF,
    "Q8_0": sqrt(31) / (2 * 127) + _HALF,
    "Q5_0": sqrt(31) / (2 * 16) + _HALF,
    "Q4_0": sqrt(31) / (2 * 8) + _HALF,
    "Q4_1": sqrt(32) * sqrt(2) / (2 * 15) + 2 * _HALF,
    "Q5_1": sqrt(32) * sqrt(2) / (2 * 31) + 2 * _HALF,
    "Q1_0": 1 + _HALF,
    "Q2_0": 1 + _HALF,
    "IQ4_NL": _k_bound(sqrt(32) * 24 / 113, 0),
    "IQ4_XS": _k_bound(sqrt(32) * 24 / 113, 16 / 64),
    "IQ3_S": _k_bound(sqrt(32) * 4 / 15, 16 / 31),
    "Q2_K": _k_bound(sqrt(16) * sqrt(2) / 3, 16 / 15),
    "Q3_K": _k_bound(sqrt(16) / 4, 16 / 64),
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
    "Q4_1": 15 + 1,
    "Q5_1": 31 + 1,
    "Q1_0": 1,
    "Q2_0": 2,
    "IQ4_NL": 127,
    "IQ4_XS": 32 * 127,
    "IQ3_S": 31 * 15,
    "Q2_K": 15 * 3 + 15,
    "Q3_K": 32 * 4,
    "Q4_K": 63 * 15 + 63,
    "Q5_K": 63 * 31 + 63,
    "Q6_K": 128 * 32,
}
