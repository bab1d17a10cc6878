"""What a scheme costs on given rows: each rule of quantisation in a few lines of numpy, apart from any writer's code.

A rule takes groups of neighbours, float32 [..., group], and returns what they become: the values that a payload of that
form would be read back as. Where a format leaves the choice of its scales to the writer, the rule here makes a plain
one, so that a writer that searches longer loses less. Source of the rules: ggml-quants.c's reference quantisers, mlx's
``affine_quantize``, and onnxruntime's MatMulNBits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np

from edgepack.errors import BuildError
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import FloatType, Form

PASS = 65536
"""Weights that a rule is applied to at a time, so that its passes over them stay in the cache."""

SUPER = 256
"""Weights of a K-quant's block, whose groups share what their scales are multiples of."""


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


def _levels(x: Float32, lowest: int, highest: int) -> Float32:
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
    """Groups that reach from a minimum below zero; scales and minima are multiples, to 63, of two of their block's."""
    from edgepack_packager.proof import fits

    top = 2**form.bits - 1
    scale, lowest = np.empty((2, *x.shape[:2], 1), np.float32)
    parts = np.arange(top - 1, top + 4, dtype=np.float32)
    fits.affine(_columns(x), parts, np.float32(top), scale.reshape(-1), lowest.reshape(-1))
    scales, minima = (_multiples(values, 63, SUPER // form.group) for values in (scale, -lowest))
    return _levels(_over(x + minima, scales), 0, top) * scales - minima


def _k_signed(form: Form, x: Float32) -> Float32:
    """Levels from -2^(b-1) to 2^(b-1) - 1; scales are multiples, from -128 to 127, of one of their block's."""
    from edgepack_packager.proof import fits

    half = 2 ** (form.bits - 1)
    scale = np.empty((*x.shape[:2], 1), np.float32)
    parts = np.array([-half + by for by in (-0.8, -0.4, 0, 0.4, 0.8)], np.float32)
    fits.signed(_columns(x), parts, np.float32(-half), np.float32(half - 1), scale.reshape(-1))
    scales = _multiples(scale, -128, SUPER // form.group)
    return _levels(_over(x, scales), -half, half - 1) * scales


def _columns(x: Float32) -> Float32:
    """Return what ``_groups`` made as it lies in memory: a group a column."""
    return np.ascontiguousarray(x.reshape(-1, x.shape[-1]).T)


_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
_BETWEEN = (_NL[1:] + _NL[:-1]) / 2


def _nonlinear(form: Form, x: Float32) -> Float32:
    """The sixteen levels of ggml's ``kvalues_iq4nl``."""
    peak = _peak(x)
    scale, _ = _best(_scaled(x, _nearest_nl(_over(x, peak / np.float32(-127 + by)))) for by in range(-7, 8, 2))
    scale = _stored(scale, form)
    return _nearest_nl(_over(x, scale)) * scale


def _nearest_nl(x: Float32) -> Float32:
    return _NL[np.searchsorted(_BETWEEN, x)]


_Fit = tuple[Float32, Float32, Float32]
"""The squared error of a fit, and its scale and offset: [..., 1] each."""


def _scaled(x: Float32, q: Float32) -> _Fit:
    """Fit x by a multiple of q: least squares, each weighted by the square of x, as ggml does."""
    weights = x * x
    scale = _over((weights * x * q).sum(-1, keepdims=True), (weights * q * q).sum(-1, keepdims=True))
    return (weights * np.square(scale * q - x)).sum(-1, keepdims=True), scale, np.zeros_like(scale)


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
    "affine": _affine,
    "q4_0": _signed,
    "q5_0": _signed,
    "q8_0": _symmetric,
    "q4_1": _from_the_lowest,
    "q5_1": _from_the_lowest,
    "iq4_nl": _nonlinear,
    "q4_K": _k_affine,
    "q5_K": _k_affine,
    "q6_K": _k_signed,
}
