"""Grids that a source's weights were rounded to before: a few equal steps, with one scale for neighbours in a row.

Weights that were trained for 4 bits, ternary and binary ones, and what GPTQ or AWQ stored as floats again are
q * scale + bias for whole q, rounded once more to bf16, f16 or float32. The plain rule of a format puts the largest
weight of a group on its lowest level, where such a group rarely has it, and loses all of the grid. Here the grid is
found again, or nothing is: a row counts only if *every* weight of it is explained to within its own rounding, so that
levels which are found by mistake would lose no more than that rounding either.

A row is on a grid by chance with a probability of at most ``CHANCE``: of weights that lie anywhere between two steps,
each falls as close to one as the rounding allows with a chance of twice that tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined
from edgepack_packager.targets import Form

STEPS = 15
"""The most steps from the lowest to the highest weight of a group, and of a signed grid from zero: those of 4 bits."""

CHANCE = 2.0**-64
"""How likely a row may be on a grid by coincidence, and still count: the largest models have 2**24 rows."""

_SIGNED = frozenset({"signed", "q2_0", "q4_0", "q5_0", "q8_0"})
_AFFINE = frozenset({"affine", "q4_1", "q5_1"})
_WHOLE = "asymmetric"
"""A bias that is a whole multiple of the scale, so that 0 is one of the levels."""
_BINARY = "q1_0"
"""A scale's two signs, and nothing between them."""

_HALF_PRECISION = float(np.finfo(np.float16).tiny), float(np.finfo(np.float16).max)

_TOO_NEAR = 0.25
"""A tolerance, in steps, from which on rounding would hide what a grid is."""

BF16, F16, F32 = 2.0**-8, 2.0**-11, 2.0**-22
"""By how much of itself a weight may have been rounded: half a unit in the last place, over the value at its least. Of
float32 it is four times that, since the product and the sum that made the weight were rounded as well."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Grids:
    """The rows that lie on grids: their indices [n], and of each group the scale and bias: float32 [n, groups].

    A weight is q * scale + bias, with q from 0 to 2**bits - 1. A group of equal weights has the scale 0, but for a grid
    whose bias is a whole multiple of the scale.
    """

    rows: NDArray[np.intp]
    scales: Float32
    biases: Float32

    @property
    def zeros(self) -> NDArray[np.uint8]:
        """The level that stands for 0, where the bias is a whole multiple of the scale: uint8 [n, groups]."""
        steps = np.where(self.scales != 0, self.scales, np.float32(1))
        return np.rint(-self.biases / steps).astype(np.uint8)


def recover(rows: Float32, form: Form) -> Grids | None:
    """Return the grids that rows, float32 [n, columns], lie on and that a form can express; None where none does.

    The columns are a multiple of the form's group. A grid without a bias has whole multiples of a scale of either sign,
    from -2**(bits - 1), or from -15, whichever is closer to zero.
    """
    if form.kind not in _SIGNED | _AFFINE | {_BINARY, _WHOLE}:
        return None
    rows = np.ascontiguousarray(rows, np.float32)
    shape = (len(rows), rows.shape[1] // form.group)
    noise = rounding(rows)
    scales, biases = np.zeros(shape, np.float32), np.zeros(shape, np.float32)
    found = np.zeros(len(rows), np.bool_)
    half = 2 ** (form.bits - 1)
    if form.kind in _SIGNED or form.kind in ("affine", _WHOLE):
        _find(rows, noise, form.group, min(half, STEPS), half, False, found, scales, biases)
        biases = scales * np.float32(-half)
    if form.kind in _AFFINE or form.kind in (_BINARY, _WHOLE):
        before = found.copy()
        _find(rows, noise, form.group, min(2 * half - 1, STEPS), half, True, found, scales, biases)
        if form.kind == _WHOLE:
            _make_whole(rows, noise, form.group, 2 * half - 1, before, found, scales, biases)
    if form.kind == _BINARY:
        off = np.abs(2 * biases + scales) <= 2 * noise[:, None] * np.abs(scales)
        found &= (off | (scales == 0)).all(axis=1)
    if form.scales == "f16":
        least, most = _HALF_PRECISION
        size = np.abs(scales)
        found &= (((size >= least) | (size == 0)) & (np.maximum(size, np.abs(biases)) <= most)).all(axis=1)
    on = np.flatnonzero(found)
    return Grids(on, scales[on], biases[on]) if len(on) else None


def rounding(rows: Float32) -> Float32:
    """Return by how much of itself each row's weights may have been rounded: float32 [n]."""
    found = np.empty(len(rows), np.float32)
    _roundings(np.ascontiguousarray(rows, np.float32).view(np.uint32), found)
    return found


@compiled
def _roundings(bits: NDArray[np.uint32], found: Float32) -> None:
    for r in range(len(bits)):
        found[r] = _rounding(bits[r])


@inlined
def _rounding(row: NDArray[np.uint32]) -> float:
    """That of the coarsest type that holds a row."""
    used = np.uint32(0)
    for i in range(len(row)):
        used |= row[i]
    return BF16 if not used & 0xFFFF else F16 if not used & 0x1FFF else F32


@compiled
def _find(
    rows: Float32,
    noises: Float32,
    group: int,
    most: int,
    half: int,
    shifted: bool,
    found: NDArray[np.bool_],
    scales: Float32,
    biases: Float32,
) -> None:
    """Look for the grids of all rows that are not found yet; ``shifted``: with a bias. Ordinary rows cost little.

    ``noises`` is what ``rounding`` says of each row.

    The first group that lies on none ends its row, and the first weight that lies on none ends a guess.
    """
    fit = np.empty(3)
    for r in range(len(rows)):
        if found[r]:
            continue
        noise, chance = np.float64(noises[r]), 1.0
        on = True
        for g in range(scales.shape[1]):
            x = rows[r, g * group : (g + 1) * group]
            on = _shifted(x, noise, most, fit) if shifted else _signed(x, noise, most, half, fit)
            if not on:
                break
            scales[r, g] = fit[0]
            if shifted:
                biases[r, g] = fit[1]
            chance = chance * fit[2] if chance > CHANCE else chance
        found[r] = on and chance <= CHANCE


@compiled
def _make_whole(
    rows: Float32,
    noise: Float32,
    group: int,
    top: int,
    before: NDArray[np.bool_],
    found: NDArray[np.bool_],
    scales: Float32,
    biases: Float32,
) -> None:
    """Make the biases of rows that were found, but not ``before``, whole multiples of their scales, from 0 to -``top``.

    Where a level would exceed ``top`` then, or a weight lie off its own, its row is not found any longer.
    """
    for r in range(len(rows)):
        if before[r] or not found[r]:
            continue
        for g in range(scales.shape[1]):
            x = rows[r, g * group : (g + 1) * group]
            if scales[r, g] == 0:  # weights that are all the same: one step from 0
                scales[r, g], biases[r, g] = biases[r, g], 0
            scale = float(scales[r, g])
            if scale == 0:
                continue
            zero = min(max(-np.rint(biases[r, g] / scale), 0.0), top)
            xq, qq = 0.0, 0.0
            for i in range(len(x)):
                q = np.rint(x[i] / scale)
                found[r] = found[r] and -zero <= q <= top - zero
                xq += x[i] * q
                qq += q * q
            scale = xq / qq
            for i in range(len(x)):
                off = abs(x[i] - np.rint(x[i] / scale) * scale)
                found[r] = found[r] and off <= 2.02 * noise[r] * abs(x[i]) + _least(noise[r])
            scales[r, g] = scale
            biases[r, g] = np.float32(-zero) * scales[r, g]


@inlined
def _signed(x: Float32, noise: float, most: int, half: int, fit: Float64) -> bool:
    """Find the fewest steps from zero to the largest weight of a group, at most ``most``, of which all are multiples.

    Fills ``fit``: the scale, the bias 0, and the chance of a coincidence. With ``half`` steps the largest weight has to
    take the lowest level, so that none may lie opposite to it.
    """
    peak = 0.0
    for i in range(len(x)):
        peak = x[i] if abs(x[i]) > abs(peak) else peak
    fit[0], fit[1], fit[2] = 0, 0, 1
    if peak == 0:
        return not np.isnan(x).any()
    if not np.isfinite(peak):
        return False
    for steps in range(1, most + 1):
        scale = -peak / steps if steps == half else abs(peak) / steps
        tiny = _least(noise) / abs(scale)
        xq, qq, xx, chance = 0.0, 0.0, 0.0, 1.0
        on = True
        for i in range(len(x)):
            value = x[i] / scale
            q = np.rint(value)
            # its own rounding, and that of the largest weight, which the scale was guessed from
            near = 2.02 * noise * abs(q) + tiny
            if not (abs(value - q) <= near and near < _TOO_NEAR and q != half):
                on = False
                break
            xq += x[i] * q
            qq += q * q
            xx += (noise * x[i]) ** 2 + _least(noise) ** 2
            if q != 0 and chance > CHANCE * CHANCE:
                chance *= 2 * near
        if on:
            fit[0] = xq / qq
            # as many guesses, and the largest weight says nothing
            fit[2] = min(1.0, chance * most / (2 * (2.02 * noise * steps + tiny)))
            if _error(x, scale, 0.0, fit[0], 0.0) <= 1.01 * xx:
                return True
    return False


@inlined
def _shifted(x: Float32, noise: float, most: int, fit: Float64) -> bool:
    """Find the fewest steps from the lowest to the highest weight of a group, at most ``most``, that hold all others.

    Fills ``fit``: the scale, the bias, which is the lowest level, and the chance of a coincidence.
    """
    low, high, speaking = np.float64(x[0]), np.float64(x[0]), 0
    for i in range(len(x)):
        low, high = min(low, x[i]), max(high, x[i])
        speaking += x[i] != 0
    speaking -= (low != 0) + (high != 0)  # zeros and the ends say nothing
    fit[0], fit[1], fit[2] = 0, low, 1
    if not np.isfinite(high - low):
        return False
    if high == low:
        return not np.isnan(x).any()
    off = noise * max(abs(low), abs(high)) + _least(noise)
    for steps in range(1, most + 1):
        scale = (high - low) / steps
        near = 2.02 * off / scale  # its own rounding, and that of the ends
        if not near < _TOO_NEAR:
            return False
        on = True
        q_sum, x_sum, qq, xq = 0.0, 0.0, 0.0, 0.0
        for i in range(len(x)):
            value = (x[i] - low) / scale
            q = np.rint(value)
            if not abs(value - q) <= near:
                on = False
                break
            q_sum += q
            x_sum += x[i] - low
            qq += q * q
            xq += q * (x[i] - low)
        if on:
            n, chance = len(x), float(most)
            for _ in range(speaking):
                chance = chance * 2 * near if chance > CHANCE * CHANCE else chance
            fit[0] = (n * xq - q_sum * x_sum) / (n * qq - q_sum * q_sum)
            fit[1] = low + (x_sum - fit[0] * q_sum) / n
            fit[2] = min(1.0, chance)
            if _error(x, scale, low, fit[0], fit[1]) <= 1.01 * n * off * off:
                return True
    return False


@inlined
def _least(noise: float) -> float:
    """Half of the smallest step of the type with that rounding, where weights come near it: f16."""
    return 2.0**-25 if noise == F16 else 0.0


@inlined
def _error(x: Float32, scale: float, low: float, fitted: float, bias: float) -> float:
    """The squared error of a fit to the levels that a guess gives."""
    total = 0.0
    for i in range(len(x)):
        total += (np.rint((x[i] - low) / scale) * fitted + bias - x[i]) ** 2
    return total
