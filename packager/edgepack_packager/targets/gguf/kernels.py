"""The searches of ggml's K-quants, compiled by numba: for each group, the scale and minimum that lose least.

ggml tries some twenty steps for a group, one after another, and sums the error of each in the order of its weights, so
that a processor waits for every addition. Here ``LANES`` groups go side by side, each in ggml's order: the results are
ggml's to the last bit, a fused multiply-add is never used, and so they are the same on every processor. Source:
``make_qkx2_quants``, ``make_qkx3_quants``, ``make_qx_quants``, ``make_q3_quants`` and ``make_qp_quants`` in
ggml-quants.c.

Their arrays are float32 [weights of a group, ``LANES``], or [``LANES``].
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined

LANES = 64
"""Groups side by side. Measured, in ns a weight of q4_K: 6.3 with 64, 7.2 with 32 or 128."""

AT_ONCE = 8
"""Weights of a group whose sums stay in registers: 14 ns with one. What it divides is 16 or 32 long."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_SHIFT = np.float32(12582912)
"""1.5 * 2^23: what is added to it becomes a whole number, ties to even, if it is less than 2^22, as ggml asserts."""
_FLAT = np.float32(1e-15)
"""ggml's ``GROUP_MAX_EPS``: a group of less is all zero."""


@compiled
def fit_affine(groups: Float32, weights: Float32, steps: Float32, fits: Float32, squared: bool = True) -> None:
    """Fit groups, float32 [n, 16 or 32], by levels from 0 times a scale, and a minimum of at most zero.

    ``weights``: what the square of each error counts, float32 of the groups' shape, or its magnitude where it is not
    ``squared``; [0, size] where it is as without an importance matrix. ``steps``: what a group's range is divided
    into, float32: the highest level, and then what else is tried.
    Fills ``fits``, float32 [n, 4]: the scale, the minimum, and two numbers that give the levels of this fit,
    ``round(inverse * (x - low))``: the inverse and low.
    """
    x, w, levels = _rows(groups), _rows(groups), _rows(groups)
    low, high, inverse, scale, minimum, error, least = _row(), _row(), _row(), _row(), _row(), _row(), _row()
    sum_w, sum_x, sum_l, sum_ll, sum_xl, spread = _row(), _row(), _row(), _row(), _row(), _row()
    fit = np.empty((4, LANES), np.float32)
    for first in range(0, len(groups), LANES):
        _take(groups, first, x)
        if len(weights):
            _take(weights, first, w)
        else:
            _weigh(x, w, sum_w)
        _survey(x, w, low, high, sum_w, sum_x)
        for k in range(len(steps)):
            for g in range(LANES):
                inverse[g] = steps[k] / (high[g] - low[g])
                if k == 0:
                    scale[g], minimum[g] = _ONE / inverse[g], low[g]
                if not np.isfinite(inverse[g]):  # the range is zero, or next to it: every level is 0
                    inverse[g] = _ZERO
            _levels(x, w, inverse, low, steps[0], levels, sum_l, sum_ll, sum_xl)
            for g in range(LANES):
                spread[g] = sum_w[g] * sum_ll[g] - sum_l[g] * sum_l[g]
                if k > 0:
                    offset = (sum_ll[g] * sum_x[g] - sum_l[g] * sum_xl[g]) / spread[g]
                    slope = (sum_w[g] * sum_xl[g] - sum_x[g] * sum_l[g]) / spread[g]
                    minimum[g] = _ZERO if offset > _ZERO else offset
                    scale[g] = sum_xl[g] / sum_ll[g] if offset > _ZERO else slope
            _errors(x, w, levels, scale, minimum, squared, error)
            for g in range(LANES):
                if k == 0 or (spread[g] > _ZERO and error[g] < least[g]):
                    least[g] = error[g]
                    fit[0, g], fit[1, g], fit[2, g], fit[3, g] = scale[g], minimum[g], inverse[g], low[g]
                    low[g] = minimum[g]  # from here on, ggml measures the range from it
        fits[first : first + LANES] = fit.T[: len(groups) - first]


@compiled
def fit_signed(groups: Float32, weights: Float32, steps: Float32, fits: Float32) -> None:
    """Fit groups, float32 [n, 16], by levels from ``steps[0]``, which is negative, to ``-steps[0] - 1`` times a scale.

    ``weights`` as in ``fit_affine``. ``steps``: what the weight of largest magnitude becomes: the lowest level, and
    then what else is tried. Fills ``fits``, float32 [n, 2]: the scale, and the number that gives the levels of this
    fit, ``round(inverse * x)``.
    """
    x, w, wx = _rows(groups), _rows(groups), _rows(groups)
    peak, inverse, sum_xl, sum_ll, best = _row(), _row(), _row(), _row(), _row()
    fit = np.empty((2, LANES), np.float32)
    lowest, highest = steps[0], -steps[0] - _ONE
    for first in range(0, len(groups), LANES):
        _take(groups, first, x)
        if len(weights):
            _take(weights, first, w)
        else:
            for i in range(len(x)):
                for g in range(LANES):
                    w[i, g] = x[i, g] * x[i, g]
        peak[:] = _ZERO
        for i in range(len(x)):
            for g in range(LANES):
                v = x[i, g]
                peak[g] = v if abs(v) > abs(peak[g]) else peak[g]
                wx[i, g] = w[i, g] * v
        for k in range(len(steps)):
            for g in range(LANES):
                inverse[g] = steps[k] / peak[g]
                sum_xl[g] = _ZERO
                sum_ll[g] = _ZERO
            for start in range(0, len(x), AT_ONCE):
                for g in range(LANES):
                    xl, ll = sum_xl[g], sum_ll[g]
                    for i in range(start, start + AT_ONCE):
                        level = _clipped(_rounded(inverse[g] * x[i, g]), lowest, highest)
                        xl += wx[i, g] * level
                        ll += w[i, g] * level * level
                    sum_xl[g], sum_ll[g] = xl, ll
            for g in range(LANES):
                better = sum_ll[g] > _ZERO and sum_xl[g] * sum_xl[g] > best[g] * sum_ll[g]
                if better or k == 0:
                    fit[0, g] = sum_xl[g] / sum_ll[g] if sum_ll[g] != _ZERO else _ZERO
                    fit[1, g] = inverse[g]
                    best[g] = fit[0, g] * sum_xl[g]
        for g in range(LANES):
            if abs(peak[g]) < _FLAT:
                fit[0, g], fit[1, g] = _ZERO, _ZERO
        fits[first : first + LANES] = fit.T[: len(groups) - first]


@compiled
def refine_signed(groups: Float32, lowest: int, scales: Float32, levels: NDArray[np.int8]) -> None:
    """Fit groups, float32 [n, 16], by levels from ``lowest``, which is negative, to ``-lowest - 1`` times a scale.

    Of one guess of the scale every level in turn moves to where the others' best scale has it, up to five times over.
    Fills ``scales``, float32 [n], and ``levels``, int8 [n, 16]: ``lowest`` throughout a silent group, as ggml does.
    """
    x, w, wx, chosen = _rows(groups), _rows(groups), _rows(groups), _rows(groups)
    peak, sum_xl, sum_ll = _row(), _row(), _row()
    least, most = np.float32(lowest), np.float32(-lowest - 1)
    for first in range(0, len(groups), LANES):
        _take(groups, first, x)
        peak[:], sum_xl[:], sum_ll[:] = _ZERO, _ZERO, _ZERO
        for i in range(len(x)):
            for g in range(LANES):
                v = x[i, g]
                peak[g] = v if abs(v) > abs(peak[g]) else peak[g]
        for i in range(len(x)):
            for g in range(LANES):
                v = x[i, g]
                level = _clipped(_rounded((least / peak[g]) * v), least, most)
                w[i, g], wx[i, g], chosen[i, g] = v * v, v * v * v, level
                sum_xl[g] += wx[i, g] * level
                sum_ll[g] += w[i, g] * level * level
        for _ in range(5):
            for i in range(len(x)):
                for g in range(LANES):
                    level = chosen[i, g]
                    xl, ll = sum_xl[g] - wx[i, g] * level, sum_ll[g] - w[i, g] * level * level
                    moved = _clipped(np.float32(whole(x[i, g] * ll / xl)), least, most)
                    new_xl, new_ll = xl + wx[i, g] * moved, ll + w[i, g] * moved * moved
                    better = new_xl * new_xl * sum_ll[g] > sum_xl[g] * sum_xl[g] * new_ll
                    if xl > _ZERO and moved != level and new_ll > _ZERO and better:
                        chosen[i, g], sum_xl[g], sum_ll[g] = moved, new_xl, new_ll
        for g in range(min(LANES, len(groups) - first)):
            silent = abs(peak[g]) < _FLAT
            scales[first + g] = sum_xl[g] / sum_ll[g] if sum_ll[g] > _ZERO and not silent else _ZERO
            for i in range(len(x)):
                levels[first + g, i] = lowest if silent else np.int8(chosen[i, g])


@compiled
def fit_multiples(values: Float32, weights: Float32, top: int, units: Float32, multiples: NDArray[np.uint8]) -> None:
    """Fit the rows of values, float32 [n, size], none of them negative, by multiples from 0 to ``top`` of one number.

    ``weights``: what the square of each error counts, float32 [n, size]. Fills ``units``, float32 [n], and
    ``multiples``, uint8 [n, size].
    """
    highest = np.float32(top)
    for r in range(len(values)):
        x, w, chosen = values[r], weights[r], multiples[r]
        most = _ZERO
        for i in range(len(x)):
            most = most if most > x[i] else x[i]
        units[r], chosen[:] = _ZERO, 0
        if most < _FLAT:
            continue
        inverse, least = _ZERO, _ZERO
        for k in range(9):  # ggml's own division first, then four tenths of a step on either side of it
            tenths = np.float32(k - 5 if k < 5 else k - 4) if k > 0 else _ZERO
            tried = (np.float32(0.1) * tenths + highest) / most
            error = _ZERO
            for i in range(len(x)):
                level = np.float32(whole(tried * x[i]))
                off = x[i] - (_ONE / tried) * (level if k == 0 or level < highest else highest)
                error += w[i] * off * off
            if k == 0 or error < least:
                inverse, least = tried, error
        xl, ll = _ZERO, _ZERO
        for i in range(len(x)):
            chosen[i] = min(whole(inverse * x[i]), top)
            xl += w[i] * x[i] * np.float32(chosen[i])
            ll += w[i] * np.float32(chosen[i]) * np.float32(chosen[i])
        for _ in range(5):
            changed = False
            for i in range(len(x)):
                level = np.float32(chosen[i])
                new_xl, new_ll = xl - w[i] * x[i] * level, ll - w[i] * level * level
                if new_xl > _ZERO and new_ll > _ZERO:
                    moved = min(whole(x[i] * new_ll / new_xl), top)
                    if moved != chosen[i]:
                        new_xl += w[i] * x[i] * np.float32(moved)
                        new_ll += w[i] * np.float32(moved) * np.float32(moved)
                        if new_xl * new_xl * ll > xl * xl * new_ll:
                            chosen[i], xl, ll, changed = moved, new_xl, new_ll, True
            if not changed:
                break
        units[r] = xl / ll if ll > _ZERO else _ZERO


@compiled
def squares(blocks: Float32, sums: Float32) -> None:
    """Add up the squares of each block, float32 [n, size], one after another, as ggml does: fills ``sums`` [n]."""
    for b in range(len(blocks)):
        total = _ZERO
        for i in range(blocks.shape[1]):
            total += blocks[b, i] * blocks[b, i]
        sums[b] = total


@compiled
def levels(
    groups: Float32,
    scales: Float32,
    minima: Float32,
    inverse: Float32,
    low: Float32,
    ends: NDArray[np.int32],
    out: NDArray[np.int8],
) -> None:
    """Give each weight of groups, float32 [n, columns], its level, from ``ends[0]`` to ``ends[1]``: int8 [n, columns].

    It is ``round((x + minimum) / scale)``, and ``round(inverse * (x - low))`` where the scale is zero; these four are
    float32 [n].
    """
    for g in range(len(groups)):
        for i in range(groups.shape[1]):
            x = groups[g, i]
            value = (x + minima[g]) / scales[g] if scales[g] != _ZERO else inverse[g] * (x - low[g])
            out[g, i] = max(ends[0], min(ends[1], whole(value)))


@inlined
def _row() -> Float32:
    """An array of its own: the compiler knows that it overlaps with no other, and computes several lanes at once."""
    return np.empty(LANES, np.float32)


@inlined
def _rows(groups: Float32) -> Float32:
    return np.empty((groups.shape[1], LANES), np.float32)


@inlined
def _rounded(x: np.float32) -> np.float32:
    return (x + _SHIFT) - _SHIFT


@inlined
def whole(x: np.float32) -> Any:
    """ggml's own way to round, whatever the value: ``nearest_int``."""
    return (np.float32(x + _SHIFT).view(np.int32) & np.int32(0x7FFFFF)) - np.int32(0x400000)


@inlined
def _clipped(x: np.float32, lowest: np.float32, highest: np.float32) -> np.float32:
    x = x if x < highest else highest
    return x if x > lowest else lowest


@inlined
def _take(groups: Float32, first: int, x: Float32) -> None:
    """Take groups from the first on, a lane each; the last one fills the lanes that are left."""
    for g in range(LANES):
        row = min(first + g, len(groups) - 1)
        for i in range(len(x)):
            x[i, g] = groups[row, i]


@inlined
def _weigh(x: Float32, w: Float32, mean: Float32) -> None:
    """What an error counts: the weight's magnitude, and the root of the group's mean square."""
    mean[:] = _ZERO
    for i in range(len(x)):
        for g in range(LANES):
            mean[g] += x[i, g] * x[i, g]
    for g in range(LANES):
        mean[g] = np.sqrt(mean[g] / np.float32(len(x)))
    for i in range(len(x)):
        for g in range(LANES):
            w[i, g] = mean[g] + abs(x[i, g])


@inlined
def _survey(x: Float32, w: Float32, low: Float32, high: Float32, sum_w: Float32, sum_x: Float32) -> None:
    low[:], high[:] = x[0], x[0]
    sum_w[:], sum_x[:] = w[0], w[0] * x[0]
    for i in range(1, len(x)):
        for g in range(LANES):
            v = x[i, g]
            low[g] = v if v < low[g] else low[g]
            high[g] = v if v > high[g] else high[g]
            sum_w[g] += w[i, g]
            sum_x[g] += w[i, g] * v
    for g in range(LANES):
        low[g] = _ZERO if low[g] > _ZERO else low[g]


@inlined
def _levels(
    x: Float32,
    w: Float32,
    inverse: Float32,
    low: Float32,
    top: np.float32,
    levels: Float32,
    sum_l: Float32,
    sum_ll: Float32,
    sum_xl: Float32,
) -> None:
    """Give each weight its level, and sum the levels, their squares and their products with the weights, by ``w``."""
    sum_l[:], sum_ll[:], sum_xl[:] = _ZERO, _ZERO, _ZERO
    for first in range(0, len(x), AT_ONCE):
        for g in range(LANES):
            total, ll, xl = sum_l[g], sum_ll[g], sum_xl[g]
            for i in range(first, first + AT_ONCE):
                level = _clipped(_rounded(inverse[g] * (x[i, g] - low[g])), _ZERO, top)
                levels[i, g] = level
                weighed = w[i, g] * level
                total += weighed
                ll += weighed * level
                xl += weighed * x[i, g]
            sum_l[g], sum_ll[g], sum_xl[g] = total, ll, xl


@inlined
def _errors(
    x: Float32, w: Float32, levels: Float32, scale: Float32, minimum: Float32, squared: bool, error: Float32
) -> None:
    error[:] = _ZERO
    for first in range(0, len(x), AT_ONCE):
        for g in range(LANES):
            total = error[g]
            for i in range(first, first + AT_ONCE):
                off = scale[g] * levels[i, g] + minimum[g] - x[i, g]
                total += w[i, g] * (off * off if squared else abs(off))
            error[g] = total
