"""Rows of float32 become rows of bytes in one of ggml's element types. Every row is encoded alone.

All of them are computed here, and so are the same on every host: plain blocks by numpy, K-quants by ``kquants``, the iq
types by ``nonlinear`` and ``lattice``. The bytes are ggml's (``quantize_row_*_ref`` in ggml-quants.c, on x86-64).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import BuildError
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Form
from edgepack_packager.targets.feedback import Feedback, levels
from edgepack_packager.targets.gguf import kquants
from edgepack_packager.targets.gguf.recipe import FORMATS, GRIDS, K_QUANTS, Kind

Bytes = NDArray[np.uint8]

# Blocks that are encoded at a time: 256 KiB of float32 in those of 32, so that the passes over them stay in the cache.
_STEP = 2048


def encode(
    kind: Kind, rows: Float32, place: str, importance: Float32 | None = None, feedback: Feedback | None = None
) -> Bytes:
    """Return float32 [n, columns] (or [n] for float types) as uint8 [n, row bytes].

    ``importance`` is what an error in each column counts, float32 [columns], for the types that search: all that are
    quantised but q8_0 and those for grids. With it, ``feedback`` is what errors are made good by, for those of ``FED``.

    Raises ``BuildError``, naming ``place``, for a value that the type cannot hold: an infinity or a NaN in a
    quantised type, and beyond 65504 in f16.
    """
    matrix = np.ascontiguousarray(rows, dtype=np.float32).reshape(len(rows), -1)
    if kind in K_QUANTS or kind.startswith("iq"):
        return _searched(kind, matrix, place, importance)
    if kind == "f32":
        return matrix.view(np.uint8)
    if kind == "bf16":
        return to_bf16(matrix).view(np.uint8)
    if kind == "f16":
        return _to_f16(matrix, place).view(np.uint8)
    if importance is not None and kind in _WEIGHED_BITS:
        return _weighed(kind, matrix, place, importance, feedback)
    return _with_numpy(kind, matrix, place)


def _searched(kind: Kind, rows: Float32, place: str, importance: Float32 | None) -> Bytes:
    if not np.isfinite(rows).all():
        raise _unrepresentable(kind, place)
    if kind in K_QUANTS:
        encoded = kquants.encode(kind, rows, importance)
        scales = kquants.scales(kind, encoded)
    else:
        encoded = _iq(kind, rows, importance)
        scales = encoded.reshape(-1, FORMATS[kind].block_bytes)[:, :2].copy().view("<f2")
    if not np.isfinite(scales).all():
        raise _unrepresentable(kind, place)
    return encoded


def _iq(kind: Kind, rows: Float32, importance: Float32 | None) -> Bytes:
    if kind == "iq3_s":
        from edgepack_packager.targets.gguf import lattice

        return lattice.encode(rows, importance)
    from edgepack_packager.targets.gguf import nonlinear

    return nonlinear.encode(rows, importance, kind == "iq4_xs")


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


_WEIGHED_BITS: dict[Kind, int] = {"q4_0": 4, "q4_1": 4, "q5_0": 5, "q5_1": 5}


FED = frozenset(_WEIGHED_BITS)
"""Types whose levels can make good each other's errors: a value is one of them times a scale, and no other's."""


def _weighed(kind: Kind, rows: Float32, place: str, importance: Float32, feedback: Feedback | None) -> Bytes:
    """Encode blocks of 32 with the scales that lose least where it counts."""
    from edgepack_packager.targets.gguf import weighed

    if not np.isfinite(rows).all():
        raise _unrepresentable(kind, place)
    fit = weighed.affine if kind.endswith("_1") else weighed.signed
    try:
        codes, *scales = fit(rows, importance, _WEIGHED_BITS[kind])
    except FloatingPointError:
        raise _unrepresentable(kind, place) from None
    if feedback is not None:
        bits, shape = _WEIGHED_BITS[kind], (len(rows), -1)
        lowest = scales[-1] if kind.endswith("_1") else scales[0] * np.float32(-(2 ** (bits - 1)))
        block, (steps, lowest) = FORMATS[kind].block, (each.reshape(shape) for each in (scales[0], lowest))
        codes = levels(rows, feedback, steps, lowest, block, 2**bits - 1).reshape(-1, block)
    columns = np.ascontiguousarray(codes.T)
    parts = [_halves(scale) for scale in scales]
    if kind.startswith("q5"):
        parts.append(_fifth_bits(columns))
        columns &= np.uint8(15)
    return np.concatenate([*parts, _nibbles(columns).T], axis=1).reshape(len(rows), -1)


def _with_numpy(kind: Kind, rows: Float32, place: str) -> Bytes:
    pack = _PACKERS[kind]
    blocks = rows.reshape(-1, FORMATS[kind].block)
    out = np.empty((len(blocks), FORMATS[kind].block_bytes), np.uint8)
    for start in range(0, len(blocks), _STEP):
        # One column per block: reductions and scales then run along contiguous memory, twice as fast as along blocks.
        columns = blocks[start : start + _STEP].T.copy()
        highest, lowest = columns.max(axis=0), columns.min(axis=0)
        if not (np.isfinite(highest).all() and np.isfinite(lowest).all()):
            raise _unrepresentable(kind, place)
        try:
            pack(columns, _plain_scale(kind, columns, highest, lowest), lowest, out[start : start + _STEP])
        except FloatingPointError:
            raise _unrepresentable(kind, place) from None
    return out.reshape(len(rows), -1)


def keep_grids(kind: Kind, rows: Float32, factor: float, encoded: Bytes, place: str) -> None:
    """Replace those of the encoded rows that lie on a grid by its levels, which ggml's own rule would round away.

    ``rows``: float32 [n, columns], as the source has them; ``factor``: what they were multiplied by before they became
    ``encoded``, uint8 [n, row bytes].

    Raises ``BuildError``, naming ``place``, for rows on no grid in a type that is for grids.
    """
    if kind not in _PACKERS:
        return
    from edgepack_packager.targets import grids

    size = FORMATS[kind].block
    found = grids.recover(rows, Form(kind, int(kind[1]), size))
    if kind in GRIDS:
        others: NDArray[np.bool_] = np.count_nonzero(rows, axis=1) > 0
        others[found.rows if found else []] = False
        if others.any():
            raise BuildError(
                f"{place} lies on no grid that {kind} holds: {GRIDS[kind]} times a scale for {size} neighbours.",
                hint="This type is for weights that were trained so. Choose q4_k_m, or q2_k with --calibrate built-in.",
            )
    if found is None or kind == "q1_0":  # whose own rule, the mean magnitude, meets a binary grid
        return
    scaled = np.float32(factor)
    blocks = rows[found.rows].reshape(-1, size) * scaled
    scales, lowest = (each.reshape(-1) * scaled for each in (found.scales, found.biases))
    out = np.empty((len(blocks), FORMATS[kind].block_bytes), np.uint8)
    for start in range(0, len(blocks), _STEP):
        run = slice(start, start + _STEP)
        _PACKERS[kind](blocks[run].T.copy(), scales[run], lowest[run], out[run])
    encoded[found.rows] = out.reshape(len(found.rows), -1)


def _plain_scale(kind: Kind, columns: Float32, highest: Float32, lowest: Float32) -> Float32:
    """Return ggml's scale of each block; a column of ``columns`` is a block."""
    if kind == "q8_0":
        return np.divide(np.maximum(np.abs(highest), np.abs(lowest)), np.float32(127), dtype=np.float32)
    if kind == "q1_0":
        return np.asarray(sum(np.abs(columns)), np.float32) / np.float32(128)
    if kind == "q2_0":
        return np.maximum(highest, -lowest)
    if kind in ("q4_1", "q5_1"):
        return (highest - lowest) / np.float32(15 if kind == "q4_1" else 31)
    return _first_peak(columns, highest, lowest) / np.float32(-16 if kind == "q5_0" else -8)


def _pack_q1_0(columns: Float32, scale: Float32, _: Float32, out: Bytes) -> None:
    out[:, :2] = _halves(scale)
    out[:, 2:] = np.packbits(columns >= 0, axis=0, bitorder="little").T


def _pack_q2_0(columns: Float32, scale: Float32, _: Float32, out: Bytes) -> None:
    # Levels are -1 to 2: of a scale that a level of -2 would meet, the opposite has all of them.
    meets = (np.abs(columns) > np.float32(1.5) * np.abs(scale)).any(axis=0)
    scale = np.where(meets, -scale, np.abs(scale))
    columns *= _inverse(scale)
    columns += _half_way(columns)
    four = (columns.astype(np.int8) + np.int8(1)).view(np.uint8).reshape(16, 4, -1)
    out[:, :2] = _halves(scale)
    out[:, 2:] = (four[:, 0] | four[:, 1] << 2 | four[:, 2] << 4 | four[:, 3] << 6).T


def _pack_q4_0(columns: Float32, scale: Float32, _: Float32, out: Bytes) -> None:
    codes = _codes(columns, _inverse(scale), 8.5, 15)
    out[:, :2] = _halves(scale)
    out[:, 2:] = _nibbles(codes).T


def _pack_q4_1(columns: Float32, scale: Float32, lowest: Float32, out: Bytes) -> None:
    columns -= lowest
    codes = _codes(columns, _inverse(scale), 0.5, 15)
    out[:, :2] = _halves(scale)
    out[:, 2:4] = _halves(lowest)
    out[:, 4:] = _nibbles(codes).T


def _pack_q5_0(columns: Float32, scale: Float32, _: Float32, out: Bytes) -> None:
    codes = _codes(columns, _inverse(scale), 16.5, 31)
    out[:, :2] = _halves(scale)
    out[:, 2:6] = _fifth_bits(codes)
    out[:, 6:] = _nibbles(codes & np.uint8(15)).T


def _pack_q5_1(columns: Float32, scale: Float32, lowest: Float32, out: Bytes) -> None:
    columns -= lowest
    codes = _codes(columns, _inverse(scale), 0.5, 31)
    out[:, :2] = _halves(scale)
    out[:, 2:4] = _halves(lowest)
    out[:, 4:8] = _fifth_bits(codes)
    out[:, 8:] = _nibbles(codes & np.uint8(15)).T


def _pack_q8_0(columns: Float32, scale: Float32, _: Float32, out: Bytes) -> None:
    columns *= _inverse(scale)
    columns += _half_way(columns)
    out[:, :2] = _halves(scale)
    out[:, 2:] = columns.astype(np.int8).view(np.uint8).T


_PACKERS: dict[Kind, Callable[[Float32, Float32, Float32, Bytes], None]] = {
    "q1_0": _pack_q1_0,
    "q2_0": _pack_q2_0,
    "q4_0": _pack_q4_0,
    "q4_1": _pack_q4_1,
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


def _half_way(columns: Float32) -> Float32:
    """The largest float below a half, with the sign of each value: truncation then rounds halves away from zero, as C's
    roundf does, and does not lift 0.49999997 to 1."""
    return np.copysign(np.nextafter(np.float32(0.5), np.float32(0)), columns)


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
