"""What a scheme costs on given rows: each rule of quantisation in a few lines of numpy, apart from any writer's code.

A rule takes groups of neighbours, float32 [..., group], and returns what they become: the values that a payload of that
form would be read back as. Where a format leaves the choice of its scales to the writer, the rule here makes a plain
one, so that a writer that searches longer loses less. Source of the rules: ggml-quants.c's reference quantisers, mlx's
``affine_quantize``, and onnxruntime's MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cache

import numpy as np

from edgepack.errors import BuildError
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import FloatType, Form

PASS = 65536
"""Weights that a rule is applied to at a time, so that its passes over them stay in the cache."""

SUPER = 256
"""Weights of a K-quant's block, whose groups share what their scales are multiples of."""

_ONE, _TWO = np.float32(1), np.float32(2)


def kept(form: Form, rows: Float32) -> Float32:
    """Return the rows [n, columns] as this form keeps them; a last group that is not full is filled with zeros.

    Raises ``BuildError`` for a kind that has no rule here.
    """
    if form.kind in _FLOATS:
        return _FLOATS[form.kind](rows)
    rule = _RULES.get(form.kind)
    if rule is None:
        raise BuildError(f"The proof does not know what the quantisation {form.kind} costs.", hint="Report this.")
    result = np.empty_like(rows)
    step = max(1, PASS // rows.shape[1])
    for start in range(0, len(rows), step):
        part = rows[start : start + step]
        result[start : start + step] = _joined(rule(form, _groups(part, form.group)))[:, : part.shape[1]]
    return result


def _groups(rows: Float32, group: int) -> Float32:
    """Return rows [n, columns] as [n, groups, group], with the groups' first weights side by side in memory.

    What is computed of a group is then computed of all groups at once, several times as fast.
    """
    whole = np.pad(rows, ((0, 0), (0, -rows.shape[1] % group))) if rows.shape[1] % group else rows
    return np.ascontiguousarray(whole.reshape(-1, group).T).T.reshape(len(rows), -1, group)


def _joined(groups: Float32) -> Float32:
    return groups.reshape(len(groups), -1)


def _to_f16(x: Float32) -> Float32:
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def _to_bf16(x: Float32) -> Float32:
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


_FLOATS: dict[str, Callable[[Float32], Float32]] = {"f32": lambda x: x, "f16": _to_f16, "bf16": _to_bf16}


def to_float(kind: FloatType, x: Float32) -> Float32:
    """Return the values that a float type has for ``x``, rounded to nearest, ties to even: float32 of its shape."""
    return _FLOATS[kind](x)


def _stored(scales: Float32, form: Form) -> Float32:
    return to_float(form.scales, scales)


def _over(x: Float32, y: Float32) -> Float32:
    """x / y, and 0 where y is 0 or so small that the quotient is beyond a float."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        quotient: Float32 = x / y
    finite = np.isfinite(quotient)
    if not finite.all():
        quotient[~finite] = 0
    return quotient


def _levels(x: Float32, lowest: Float32 | int, highest: Float32 | int) -> Float32:
    levels: Float32 = np.clip(np.rint(x), lowest, highest)
    return levels


def _peak(x: Float32) -> Float32:
    """The value of largest magnitude of each group, with its sign."""
    high, low = x.max(-1, keepdims=True), x.min(-1, keepdims=True)
    peak: Float32 = np.where(high > -low, high, low)
    return peak


def _signed(form: Form, x: Float32) -> Float32:
    """Levels from -2^(b-1) to 2^(b-1) - 1; the value of largest magnitude takes the lowest."""
    half = 2 ** (form.bits - 1)
    scale = _peak(x) / np.float32(-half)
    return _levels(_over(x, scale), -half, half - 1) * _stored(scale, form)


def _symmetric(form: Form, x: Float32) -> Float32:
    """Levels from -127 to 127."""
    scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
    return _levels(_over(x, scale), -127, 127) * _stored(scale, form)


def _from_the_lowest(form: Form, x: Float32) -> Float32:
    """Levels from the lowest value of a group to its highest."""
    top = 2**form.bits - 1
    lowest = x.min(-1, keepdims=True)
    scale = (x.max(-1, keepdims=True) - lowest) / np.float32(top)
    return _levels(_over(x - lowest, scale), 0, top) * _stored(scale, form) + _stored(lowest, form)


def _asymmetric(form: Form, x: Float32) -> Float32:
    """Levels from the lowest value of a group to its highest, but for what makes 0 one of them."""
    top = 2**form.bits - 1
    lowest = np.minimum(x.min(-1, keepdims=True), 0)
    scale = (np.maximum(x.max(-1, keepdims=True), 0) - lowest) / np.float32(top)
    zero = np.rint(_over(lowest, scale))
    return _levels(_over(x, scale), zero, zero + top) * _stored(scale, form)


def _affine(form: Form, x: Float32) -> Float32:
    """Levels over a group's range, moved so that zero and the end of larger magnitude are levels."""
    top = 2**form.bits - 1
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    below = np.abs(low) > np.abs(high)
    scale = np.maximum((high - low) / np.float32(top), np.float32(1e-7)) * np.where(below, 1, -1).astype(np.float32)
    edge: Float32 = np.where(below, low, high)
    steps = np.rint(_over(edge, scale))
    scale = np.where(steps != 0, _over(edge, steps), scale)
    bias = np.where(steps != 0, edge, np.float32(0))
    return _levels(_over(x - bias, scale), 0, top) * _stored(scale, form) + _stored(bias, form)


def _k_affine(form: Form, x: Float32) -> Float32:
    """Groups that reach from a minimum below zero; scales and minima are multiples, to 63, of two of their block's.

    In groups of 16, of q2_K, those multiples end at 15.
    """
    from edgepack_packager.proof import fits

    top = 2**form.bits - 1
    if form.bits > 2:
        scale, lowest = np.empty((2, *x.shape[:2], 1), np.float32)
        parts = np.arange(top - 1, top + 4, dtype=np.float32)
        fits.affine(_columns(x), parts, np.float32(top), scale.reshape(-1), lowest.reshape(-1))
    else:
        scale, lowest = _best(_fits_by_size(x))
    most = 63 if form.group == 32 else 15
    scales, minima = (_multiples(values, most, SUPER // form.group) for values in (scale, -lowest))
    return _levels(_over(x + minima, scales), 0, top) * scales - minima


def _k_signed(form: Form, x: Float32) -> Float32:
    """Levels from -2^(b-1) to 2^(b-1) - 1; scales are multiples of one of their block's, from -128 to 127, or to 31."""
    from edgepack_packager.proof import fits

    half, most = 2 ** (form.bits - 1), -128 if form.bits == 6 else -32
    scale = np.empty((*x.shape[:2], 1), np.float32)
    # of q3_K ggml tries one alone
    tried = (-0.8, -0.4, 0, 0.4, 0.8) if form.bits == 6 else (0,)
    parts = np.array([-half + by for by in tried], np.float32)
    fits.signed(_columns(x), parts, np.float32(-half), np.float32(half - 1), scale.reshape(-1))
    scales = _multiples(scale, most, SUPER // form.group)
    return _levels(_over(x, scales), -half, half - 1) * scales


def _columns(x: Float32) -> Float32:
    """Return what ``_groups`` made as it lies in memory: a group a column."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)


_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_BETWEEN = (_NL[1:] + _NL[:-1]) / 2


def _nonlinear(form: Form, x: Float32) -> Float32:
    """The sixteen levels of ggml's ``kvalues_iq4nl``."""
    fits = [_scaled(x, _nearest_nl(_over(x, _peak(x) / np.float32(lowest)))) for lowest in (127, -127)]
    # ggml tries the opposite first, and keeps it where one weight is so loud that the others do not tell in float32
    fits[0] = fits[0][0] - np.float32(2**-20) * (x**4).sum(-1, keepdims=True), *fits[0][1:]
    scale, _ = _best(fits)
    scale = _stored(scale, form) if form.kind == "iq4_nl" else _multiples(scale, -32, SUPER // form.group)
    return _nearest_nl(_over(x, scale)) * scale


def _nearest_nl(x: Float32) -> Float32:
    return _NL[np.searchsorted(_BETWEEN, x)]


def _lattice(form: Form, x: Float32) -> Float32:
    """Odd magnitudes to 15, of which four together are one of 512 points; scales are odd multiples of their block's."""
    size, known = np.abs(x), _points()
    first = size.max(-1, keepdims=True) / np.float32(15)
    _, scale, _ = _scaled(size, _TWO * _levels((_over(size, first) - _ONE) / _TWO, 0, 7) + _ONE)
    blocks = scale.reshape(-1, SUPER // form.group)
    unit = blocks.max(-1, keepdims=True) / np.float32(31)
    odd = _TWO * _levels((_over(blocks, unit) - _ONE) / _TWO, 0, 15) + _ONE
    scales = (odd * _to_f16(unit * np.float32(1.033))).reshape(scale.shape)  # ggml's own correction
    # the points are those of the scale as it was, which makes the whole a little louder
    return np.copysign(_on_points(_over(size, scale), size, known) * scales, x)


def _on_points(x: Float32, weights: Float32, known: Float32) -> Float32:
    """Move each four of x to the point where the errors, weighted, are least: float32 of the shape of x."""
    four, w = x.reshape(-1, 4), weights.reshape(-1, 4)
    distance = w @ np.square(known).T
    distance -= 2 * (w * four) @ known.T
    found: Float32 = known[distance.argmin(axis=1)].reshape(x.shape)
    return found


@cache
def _points() -> Float32:
    """The 512 points of iq3_s, as the package gguf has them: float32 [512, 4]."""
    from gguf.quants import IQ3_S

    IQ3_S.init_grid()
    known: Float32 = IQ3_S.grid.reshape(512, 4).astype(np.float32)
    return known


def _binary(form: Form, x: Float32) -> Float32:
    """Either sign of the mean magnitude."""
    return np.where(x < 0, np.float32(-1), np.float32(1)) * _stored(np.abs(x).mean(-1, keepdims=True), form)


def _ternary(form: Form, x: Float32) -> Float32:
    """Whole multiples of the largest magnitude, or of half of it, of which one more lies on its side of zero."""
    peak = _peak(x)
    whole, halves = _stored(np.abs(peak), form), _stored(peak / _TWO, form)
    one, two = (_levels(_over(x, scale), -1, most) * scale for scale, most in ((whole, 1), (halves, 2)))
    less = np.square(two - x).sum(-1, keepdims=True) < np.square(one - x).sum(-1, keepdims=True)
    return np.where(less, two, one)


_Fit = tuple[Float32, Float32, Float32]
"""The squared error of a fit, and its scale and offset: [..., 1] each."""


def _scaled(x: Float32, q: Float32) -> _Fit:
    """Fit x by a multiple of q: least squares, each weighted by the square of x, as ggml does."""
    weights = x * x
    scale = _over((weights * x * q).sum(-1, keepdims=True), (weights * q * q).sum(-1, keepdims=True))
    return (weights * np.square(scale * q - x)).sum(-1, keepdims=True), scale, np.zeros_like(scale)


def _fits_by_size(x: Float32) -> Iterator[_Fit]:
    """Yield ggml's fits of q2_K: by whole steps from the lowest as they are, and by parts of one, fitted.

    Errors are the sum of magnitudes there, each weighted by that of its weight, as are the least squares.
    """
    w, low = np.abs(x), np.minimum(x.min(-1, keepdims=True), np.float32(0))
    above = x - low
    step = (np.maximum(x.max(-1, keepdims=True), np.float32(0)) - low) / np.float32(3)
    q = _levels(_over(above, step), 0, 3)
    yield (w * np.abs(step * q + low - x)).sum(-1, keepdims=True), step, low
    total = np.maximum(w.sum(-1, keepdims=True), np.float32(1e-30))
    for share in (6 / 5, 1, 6 / 7, 3 / 4):
        q = _levels(_over(above, step * np.float32(share)), 0, 3)
        mean_q, mean_x = ((w * of).sum(-1, keepdims=True) / total for of in (q, x))
        spread = (w * np.square(q - mean_q)).sum(-1, keepdims=True)
        scale = _over((w * (q - mean_q) * (x - mean_x)).sum(-1, keepdims=True), spread)
        offset = mean_x - scale * mean_q
        alone = _over((w * x * q).sum(-1, keepdims=True), (w * q * q).sum(-1, keepdims=True))
        scale, offset = np.where(offset > 0, alone, scale), np.minimum(offset, 0)
        yield (w * np.abs(scale * q + offset - x)).sum(-1, keepdims=True), scale, offset


def _best(fits: Iterable[_Fit]) -> tuple[Float32, Float32]:
    """Return scale and offset of the fit with the least error, group by group."""
    first, *others = fits
    error, scale, offset = first
    for found in others:
        less = found[0] < error
        pairs = zip(found, (error, scale, offset), strict=True)
        error, scale, offset = (np.where(less, new, old) for new, old in pairs)
    return scale, offset


def _multiples(scales: Float32, most: int, groups: int) -> Float32:
    """Round scales [n, groups of a row, 1] to multiples of one half-precision number for each block of ``groups``.

    The scale of largest magnitude takes ``most``; the others whole numbers down to its negative, or to 0.
    """
    blocks = scales.reshape(-1, groups)
    unit = _to_f16(_peak(blocks) / np.float32(most))
    lowest, highest = (most, -most - 1) if most < 0 else (0, most)
    return (_levels(_over(blocks, unit), lowest, highest) * unit).reshape(scales.shape)


_RULES: dict[str, Callable[[Form, Float32], Float32]] = {
    "signed": _signed,
    "asymmetric": _asymmetric,
    "affine": _affine,
    "q4_0": _signed,
    "q5_0": _signed,
    "q8_0": _symmetric,
    "q4_1": _from_the_lowest,
    "q5_1": _from_the_lowest,
    "q1_0": _binary,
    "q2_0": _ternary,
    "iq4_nl": _nonlinear,
    "iq4_xs": _nonlinear,
    "iq3_s": _lattice,
    "q2_K": _k_affine,
    "q3_K": _k_signed,
    "q4_K": _k_affine,
    "q5_K": _k_affine,
    "q6_K": _k_signed,
}
