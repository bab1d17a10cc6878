"""Rows of float32 become rows of bytes in one of ggml's element types. Every row is encoded alone.

The types with blocks of 32 are numpy, and so are the same on every host; K-quants are the installed engine's own code,
which gives some blocks other bytes on another kind of processor. Both give ggml's bytes (``quantize_row_*_ref`` in
ggml-quants.c).
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from edgepack import runtime
from edgepack.errors import BuildError, EngineMissingError
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf.recipe import FORMATS, K_QUANTS, Kind

Bytes = NDArray[np.uint8]

# Where ggml-common.h keeps the half-precision scales (and minima) of a block of 256.
_K_SCALES: dict[Kind, slice] = {"q4_K": slice(0, 4), "q5_K": slice(0, 4), "q6_K": slice(208, 210)}

# Blocks of 32 that are encoded at a time: 256 KiB of float32, so that the passes over them stay in the cache.
_STEP = 2048


@runtime_checkable
class Quantizer(Protocol):
    """An engine that lends its quantiser."""

    def quantize(self, type_name: str, rows: Float32) -> Bytes:
        """Encode float32 [n, columns] as uint8 [n, row bytes]; ``type_name`` is ggml's own, such as "q4_K"."""
        ...


def find_quantizer() -> Quantizer:
    """Return the engine that encodes K-quants. Raises ``EngineMissingError`` where none is installed."""
    hint = "Install it with: pip install 'edgepack[gguf]', or choose q8_0, f16 or bf16."
    try:
        engine = runtime.find("gguf")
    except (EngineMissingError, ImportError) as error:
        raise EngineMissingError(f"K-quants need the gguf engine's own quantizer: {error}", hint=hint) from None
    if not isinstance(engine, Quantizer):
        raise EngineMissingError("The registered gguf runtime lends no quantizer for K-quants.", hint=hint)
    try:
        engine.quantize("q6_K", np.zeros((1, 256), np.float32))
    except EngineMissingError as error:
        raise EngineMissingError(f"K-quants need the gguf engine's own quantizer: {error.message}", hint=hint) from None
    return engine


class Encoder:
    """Encodes blocks of rows. It owns up to two threads for K-quants, until ``close``."""

    def __init__(self, quantizer: Quantizer | None) -> None:
        self._quantizer = quantizer
        self._threads = min(2, _usable_cores())
        self._pool = ThreadPoolExecutor(self._threads, "quantize") if quantizer else None

    def encode(self, kind: Kind, rows: Float32, place: str) -> Bytes:
        """Return float32 [n, columns] (or [n] for float types) as uint8 [n, row bytes].

        Raises ``BuildError``, naming ``place``, for a value that the type cannot hold: an infinity or a NaN in a
        quantised type, and beyond 65504 in f16.
        """
        if kind in K_QUANTS:
            return self._with_engine(kind, rows, place)
        matrix = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1)
        if kind == "f32":
            return matrix.view(np.uint8)
        if kind == "bf16":
            return to_bf16(matrix).view(np.uint8)
        if kind == "f16":
            return _to_f16(matrix, place).view(np.uint8)
        return _with_numpy(kind, matrix, place)

    def close(self) -> None:
        """Stop the threads. Safe to call twice."""
        if self._pool:
            self._pool.shutdown()

    def _with_engine(self, kind: Kind, rows: Float32, place: str) -> Bytes:
        if self._quantizer is None or self._pool is None:
            raise EngineMissingError(f"{place} needs the gguf engine to become {kind}.")
        if not np.isfinite(rows).all():
            raise _unrepresentable(kind, place)
        parts = [part for part in np.array_split(rows, self._threads) if len(part)]
        work = self._quantizer.quantize
        encoded = np.concatenate(list(self._pool.map(lambda part: work(kind, np.ascontiguousarray(part)), parts)))
        scales = encoded.reshape(-1, FORMATS[kind].block_bytes)[:, _K_SCALES[kind]]
        if not np.isfinite(scales.copy().view("<f2")).all():
            raise _unrepresentable(kind, place)
        return encoded


def to_bf16(values: Float32) -> NDArray[np.uint16]:
    """Round float32 to the nearest bfloat16, ties to even; a NaN stays one. Returns their bits in the same shape."""
    out = np.empty(values.shape, np.uint16)
    flat, target = np.ascontiguousarray(values).reshape(-1), out.reshape(-1)
    for start in range(0, flat.size, _STEP * 32):
        part = flat[start : start + _STEP * 32]
        bits = part.view(np.uint32)
        rounded = bits >> np.uint32(16)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += bits
        rounded >>= np.uint32(16)
        target[start : start + part.size] = rounded
        nan = np.isnan(part)
        if nan.any():
            target[start : start + part.size][nan] = bits[nan] >> np.uint32(16) | np.uint32(0x40)
    return out


def _to_f16(values: Float32, place: str) -> NDArray[np.float16]:
    # 65520 is the first float32 that rounds to infinity; the comparison is false for a NaN as well
    peak = max(values.max(initial=0), -values.min(initial=0))
    if not peak < 65520:
        raise BuildError(
            f"{place} holds a value that f16 cannot: its largest magnitude is {peak:g}, and f16 ends at 65504.",
            hint="Choose bf16 or f32.",
        )
    return values.astype(np.float16)


def _with_numpy(kind: Kind, rows: Float32, place: str) -> Bytes:
    pack = _PACKERS[kind]
    blocks = rows.reshape(-1, 32)
    out = np.empty((len(blocks), FORMATS[kind].block_bytes), np.uint8)
    for start in range(0, len(blocks), _STEP):
        # One column per block: reductions and scales then run along contiguous memory, twice as fast as along blocks.
        columns = blocks[start : start + _STEP].T.copy()
        highest, lowest = columns.max(axis=0), columns.min(axis=0)
        if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
            raise _unrepresentable(kind, place)
        try:
            pack(columns, highest, lowest, out[start : start + _STEP])
        except FloatingPointError:
            raise _unrepresentable(kind, place) from None
    return out.reshape(len(rows), -1)


def _pack_q4_0(columns: Float32, highest: Float32, lowest: Float32, out: Bytes) -> None:
    scale = _first_peak(columns, highest, lowest) / np.float32(-8)
    codes = _codes(columns, _inverse(scale), 8.5, 15)
    out[:, :2] = _halves(scale)
    out[:, 2:] = _nibbles(codes).T


def _pack_q5_0(columns: Float32, highest: Float32, lowest: Float32, out: Bytes) -> None:
    scale = _first_peak(columns, highest, lowest) / np.float32(-16)
    codes = _codes(columns, _inverse(scale), 16.5, 31)
    out[:, :2] = _halves(scale)
    out[:, 2:6] = _fifth_bits(codes)
    out[:, 6:] = _nibbles(codes & np.uint8(15)).T


def _pack_q5_1(columns: Float32, highest: Float32, lowest: Float32, out: Bytes) -> None:
    scale = (highest - lowest) / np.float32(31)
    columns -= lowest
    codes = _codes(columns, _inverse(scale), 0.5, 31)
    out[:, :2] = _halves(scale)
    out[:, 2:4] = _halves(lowest)
    out[:, 4:8] = _fifth_bits(codes)
    out[:, 8:] = _nibbles(codes & np.uint8(15)).T


def _pack_q8_0(columns: Float32, highest: Float32, lowest: Float32, out: Bytes) -> None:
    scale = np.divide(np.maximum(np.abs(highest), np.abs(lowest)), np.float32(127), dtype=np.float32)
    columns *= _inverse(scale)
    # The largest float below a half, with the sign of each value: truncation then rounds halves away from zero, as C's
    # roundf does, and does not lift 0.49999997 to 1.
    columns += np.copysign(np.nextafter(np.float32(0.5), np.float32(0)), columns)
    out[:, :2] = _halves(scale)
    out[:, 2:] = columns.astype(np.int8).view(np.uint8).T


_PACKERS: dict[Kind, Callable[[Float32, Float32, Float32, Bytes], None]] = {
    "q4_0": _pack_q4_0,
    "q5_0": _pack_q5_0,
    "q5_1": _pack_q5_1,
    "q8_0": _pack_q8_0,
}


def _first_peak(columns: Float32, highest: Float32, lowest: Float32) -> Float32:
    """The value of largest magnitude with its sign; of two that differ in sign only, the first in the block."""
    peak = np.where(highest >= -lowest, highest, lowest)
    tied = np.flatnonzero(highest == -lowest)
    if tied.size:
        among = columns[:, tied]
        peak[tied] = among[np.abs(among).argmax(axis=0), np.arange(tied.size)]
    return peak


def _inverse(scale: Float32) -> Float32:
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scale
    # The inverse of the smallest subnormals overflows; their scale is zero in half precision anyway.
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _codes(columns: Float32, inverse: Float32, offset: float, highest: int) -> Bytes:
    columns *= inverse
    columns += np.float32(offset)
    codes = columns.astype(np.uint8)
    return np.minimum(codes, np.uint8(highest), out=codes)


def _nibbles(codes: Bytes) -> Bytes:
    high = codes[16:] << np.uint8(4)
    high |= codes[:16]
    return high


def _fifth_bits(codes: Bytes) -> Bytes:
    return np.packbits(codes >> np.uint8(4), axis=0, bitorder="little").T


def _halves(scale: Float32) -> Bytes:
    with np.errstate(over="raise"):
        return scale.astype("<f2").view(np.uint8).reshape(-1, 2)


def _unrepresentable(kind: Kind, place: str) -> BuildError:
    return BuildError(
        f"{place} holds a value that {kind} cannot: a NaN, an infinity, or one too large for a half-precision scale.",
        hint="Check the checkpoint; f32 and bf16 store any value as it is.",
    )


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # macOS has no affinity
        return os.cpu_count() or 1
