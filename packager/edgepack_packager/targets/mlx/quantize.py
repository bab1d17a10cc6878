"""MLX's affine quantiser on its CPU, bit for bit, and the 16-bit float roundings. Pure: arrays in, arrays out.

GPU quantisers divide and round differently (two of a thousand values), so reproducible bytes need this one.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Form
from edgepack_packager.targets.feedback import Feedback, levels
from edgepack_packager.targets.mlx.forms import GROUP
from edgepack_packager.targets.sums import add_up

Float = Literal["f32", "f16", "bf16"]
Bytes = NDArray[np.uint8]

SMALLEST_SCALE = 1e-7
"""MLX's floor of a scale before it is fitted to the group's edge."""

_TILE = 1 << 17
"""Weights quantised at once: the working arrays (some 1.5 MB) stay in a core's second-level cache."""


# The share of the range between its ends that a group's levels are spread over, where a search tries several. The
# four levels of 2 bits are best spread over less than the ends of a group, which are rare in it.
_SPREADS = (1.0, 0.95, 0.9, 0.85, 0.8)
_SPREADS_OF_TWO_BITS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)


def quantize(
    weights: Float32,
    bits: int,
    stored: Float | None = None,
    *,
    search: bool = False,
    group: int = GROUP,
    importance: Float32 | None = None,
) -> tuple[Bytes, Float32, Float32]:
    """Return (packed, scales, biases) of a matrix whose columns are a multiple of ``group``.

    ``packed`` is uint8 [rows, columns * bits / 8], the little-endian bytes of MLX's uint32 words, which levels
    follow one another in whatever their bits;
    ``scales`` and ``biases`` are float32 [rows, columns / group], not yet rounded to the type that is stored:
    w' = q * scale + bias. With the group's ends lo and hi and n = 2**bits - 1: scale = max((hi - lo) / n, 1e-7),
    negative unless |lo| > |hi|; edge = the end of larger magnitude; q0 = rint(edge / scale); where q0 is not 0,
    scale = edge / q0 and bias = edge, so that zero is on the grid, else bias = 0;
    q = clip(rint((w - bias) / scale), 0, n). Weights that are not finite give scales that are not.

    MLX rounds scale and bias after that. ``stored`` rounds them to that type before the levels are chosen, which are
    then the nearest to the weights that the stored numbers can express. ``search`` replaces a group's scale and bias
    where others leave a smaller squared error, as they are stored; ``importance`` is what it counts in each column,
    float32 [columns].
    """
    rows, columns = weights.shape
    groups = np.ascontiguousarray(weights, dtype=np.float32).reshape(-1, group)
    packed = np.empty((len(groups), group * bits // 8), np.uint8)
    scales = np.empty(len(groups), np.float32)
    biases = np.empty(len(groups), np.float32)
    counts = (np.ones(columns, np.float32) if importance is None else importance).reshape(-1, group)
    step = max(1, _TILE // group)
    with np.errstate(all="ignore"):
        for start in range(0, len(groups), step):
            tile = slice(start, start + step)
            scales[tile], biases[tile] = _fit(groups[tile], bits)
            if stored:
                scales[tile], biases[tile] = _as_stored(scales[tile], stored), _as_stored(biases[tile], stored)
            if search:
                own = counts[np.arange(start, start + len(groups[tile])) % len(counts)]
                _improve(groups[tile], own, scales[tile], biases[tile], bits, stored or "f32")
            _pack(groups[tile], scales[tile], biases[tile], bits, packed[tile])
    shape = (rows, columns // group)
    return packed.reshape(rows, -1), scales.reshape(shape), biases.reshape(shape)


def feed(
    weights: Float32, bits: int, stored: Float, packed: Bytes, scales: Float32, biases: Float32, feedback: Feedback
) -> None:
    """Replace the levels that ``quantize`` chose by those that make good each other's errors.

    ``stored`` is the type that scales and biases are rounded to.
    """
    steps, lowest = _as_stored(scales, stored), _as_stored(biases, stored)
    group = weights.shape[1] // scales.shape[1]
    chosen = levels(weights, feedback, steps, lowest, group, 2**bits - 1)
    packed[:] = _joined(chosen.reshape(-1, group), bits).reshape(packed.shape)


def keep_grids(weights: Float32, bits: int, stored: Float, packed: Bytes, scales: Float32, biases: Float32) -> None:
    """Replace what ``quantize`` made of those rows that lie on a grid by its levels, which it would round away.

    ``stored`` is the type that scales and biases are rounded to.
    """
    from edgepack_packager.targets import grids

    group = weights.shape[1] // scales.shape[1]
    if (found := grids.recover(weights, Form("affine", bits, group, stored))) is None:
        return
    step = max(1, _TILE // weights.shape[1])
    for start in range(0, len(found.rows), step):
        run = slice(start, start + step)
        on = found.rows[run]
        groups = np.ascontiguousarray(weights[on]).reshape(-1, group)
        scale, bias = found.scales[run].reshape(-1), found.biases[run].reshape(-1)
        steps = np.where(scale != 0, scale, np.float32(1))
        rounded = _as_stored(scale, stored)
        # A bias makes good for the rounding of its scale, on average; one of whole steps stays so, and zeros exact.
        whole = bias == scale * np.float32(-(2 ** (bits - 1)))
        middle = (add_up(groups.T.copy()) / np.float32(group) - bias) / steps
        bias = np.where(whole, rounded * np.float32(-(2 ** (bits - 1))), bias + (scale - rounded) * middle)
        scales[on], biases[on] = rounded.reshape(len(on), -1), _as_stored(bias, stored).reshape(len(on), -1)
        chosen = np.empty((len(groups), group * bits // 8), np.uint8)
        _pack(groups, np.where(scale != 0, rounded, steps), biases[on].reshape(-1), bits, chosen)
        packed[on] = chosen.reshape(len(on), -1)


def _fit(groups: Float32, bits: int) -> tuple[Float32, Float32]:
    from edgepack_packager.targets.mlx import kernels

    scale, bias = np.empty((2, len(groups)), np.float32)
    kernels.ends(groups.view(np.int32), scale.view(np.int32), bias.view(np.int32))
    kernels.between(scale, bias, np.float32(2**bits - 1), np.float32(SMALLEST_SCALE))
    return scale, bias


def _improve(groups: Float32, counts: Float32, scales: Float32, biases: Float32, bits: int, stored: Float) -> None:
    """Replace scales and biases, in place, by those of least squared error among what ``_SPREADS`` lead to.

    Each spread, around the middle of the range, gives levels q; the line that fits them best to the weights gives scale
    and bias. Weights are taken as fractions of the range, from its middle, so that no square overflows or vanishes.
    ``counts`` is what each square counts.
    """
    from edgepack_packager.targets.mlx import kernels

    tiles, top = -(-len(groups) // kernels.LANES), np.float32(2**bits - 1)
    x, c = np.empty((2, tiles, groups.shape[1], kernels.LANES), np.float32)
    middle, width, slope, low, least, error = np.empty((6, tiles, kernels.LANES), np.float32)
    kernels.take(groups, counts, x, c, middle, width)
    inverse = np.float32(1) / width
    best = [np.resize(each, middle.shape) for each in (scales, biases)]
    kernels.errors(x, c, best[0] * inverse, (best[1] - middle) * inverse, top, least)
    for spread in _SPREADS_OF_TWO_BITS if bits == 2 else _SPREADS:
        kernels.fit(x, c, np.float32(spread) / top, np.float32(-spread / 2), top, slope, low)
        scale, bias = _as_stored(slope * width, stored), _as_stored(low * width + middle, stored)
        kernels.errors(x, c, scale * inverse, (bias - middle) * inverse, top, error)
        better = error < least
        for kept, found in ((least, error), (best[0], scale), (best[1], bias)):
            np.copyto(kept, found, where=better)
    scales[:], biases[:] = (each.reshape(-1)[: len(groups)] for each in best)


def _as_stored(values: Float32, kind: Float) -> Float32:
    """Return the values rounded to a type, in float32."""
    rounded, _ = round_to(values, kind)
    return (rounded.astype(np.uint32) << 16).view(np.float32) if kind == "bf16" else rounded.astype(np.float32)


def _pack(groups: Float32, scale: Float32, bias: Float32, bits: int, out: Bytes) -> None:
    from edgepack_packager.targets.mlx import kernels

    chosen = np.empty(groups.shape, np.uint8)
    kernels.nearest(groups, scale, bias, np.float32(2**bits - 1), chosen)
    out[...] = _joined(chosen, bits)


def dequantize(packed: Bytes, scales: Float32, biases: Float32, bits: int) -> Float32:
    """Return float32 [rows, columns] = q * scale + bias of bytes laid out as ``quantize`` does."""
    from edgepack_packager.targets import unpacking

    values = np.empty((scales.size, packed.size * 8 // bits // scales.size), np.float32)
    unpacking.affine(packed.reshape(-1), bits, scales.reshape(-1), biases.reshape(-1), values)
    return values.reshape(len(packed), -1)


# Eight levels are 64 bits, a byte each, and lie in as many bytes as a level has bits: the first in the lowest bits, the
# next above it, as in one long little-endian number. Of two neighbours in one word of 16, 32 and then 64 bits the upper
# one moves down to the lower.
_LOWER = (np.uint64(0x00FF00FF00FF00FF), np.uint64(0x0000FFFF0000FFFF), np.uint64(0x00000000FFFFFFFF))


def _joined(whole: Bytes, bits: int) -> Bytes:
    """Return bytes [n, levels * bits / 8] of levels [n, a multiple of 8] that are below 2**bits."""
    if bits == 8:
        return whole
    if bits == 4:
        pairs = np.ascontiguousarray(whole).view("<u2")  # two levels: one in bits 0-3, its neighbour in bits 8-11
        halves: Bytes = (pairs | pairs >> np.uint16(4)).astype(np.uint8)
        return halves
    eight = np.ascontiguousarray(whole).view("<u8")
    for doubling, lower in enumerate(_LOWER):
        eight = eight & lower | (eight & ~lower) >> np.uint64((8 - bits) << doubling)
    joined: Bytes = eight[:, :, None].view(np.uint8)[:, :, :bits].reshape(len(whole), -1)
    return joined


def round_to(values: Float32, kind: Float) -> tuple[NDArray[np.generic], bool]:
    """Return the values rounded to nearest, ties to even, and whether all of them are finite after it.

    "f32" gives float32, "f16" float16, "bf16" the bits of a bfloat16 as uint16 (those of a NaN may be an infinity's).
    """
    if kind == "f32":
        return values, bool(np.isfinite(values).all())
    if kind == "f16":
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            half = values.astype(np.float16)
        return half, bool(np.isfinite(half).all())
    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    upper = ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype(np.uint16)
    return upper, bool(np.isfinite(values).all() and ((upper & 0x7F80) != 0x7F80).all())
