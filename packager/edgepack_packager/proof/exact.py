"""Rows that lie on a grid which their form can hold have to be on it still, to within the roundings that made them.

Which rows those are is a fact of the source; what they have become is read back from the file.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import FloatType, Form, grids

FOUR_BITS = Form("affine", 4, 32, "f16")
"""The grids that weights are trained for, which not every form of 4 bits can hold."""

_STORED: dict[FloatType, float] = {"f32": 2.0**-22, "f16": 2.0**-11, "bf16": 2.0**-8}
"""By how much of itself a scale is rounded."""

_SLACK = 1.02
"""For what the rounding of a scale does to the fit of all others."""

Float64 = NDArray[np.float64]


def on_grids(form: Form, rows: Float32) -> NDArray[np.intp]:
    """Return which of the rows, float32 [n, columns], lie on grids that a form can hold: their indices."""
    found = grids.recover(rows, form) if rows.shape[1] % form.group == 0 else None
    return np.empty(0, np.intp) if found is None else found.rows


def held(form: Form, expected: Float32, actual: Float32) -> tuple[NDArray[np.intp], Float64]:
    """Return which rows lie on grids that their form can hold, and how much each has lost of what roundings allow.

    Both are float32 [n, columns]. A group may lose the rounding of its weights, which the grid need not explain any
    closer, and that of its scale: of its norm, or, where it has a bias of its own, of what that and its largest level
    are at most. More than 1 is a fault: a level that is off by one is worth 1 / 8 of the largest weight, or more.
    """
    filled = _filled(expected, form.group)
    found = grids.recover(filled, form)
    if found is None:
        return np.empty(0, np.intp), np.empty(0)
    ours = filled[found.rows].reshape(*found.scales.shape, form.group)
    theirs = _filled(actual[found.rows], form.group).reshape(ours.shape)
    error = np.sqrt(np.square(theirs - ours).sum(axis=2, dtype=np.float64))
    norm = np.sqrt(np.square(ours).sum(axis=2, dtype=np.float64))
    largest = np.abs(ours).max(axis=2) * np.sqrt(form.group)
    noise = grids.rounding(expected[found.rows])[:, None].astype(np.float64)
    stored = _STORED[form.scales]
    signed = found.biases == found.scales * np.float32(-(2 ** (form.bits - 1)))
    allowed = (
        np.where(signed | (form.kind == "asymmetric"), (noise + stored) * norm, (noise + 3 * stored) * largest) * _SLACK
    )
    # what float32 rounds where q * scale + bias is next to zero, and the smallest steps of f16
    absolute = np.abs(found.scales) * 2.0 ** (form.bits - 23) + np.where(noise == grids.F16, 2.0**-25, 0)
    allowed += absolute * np.sqrt(form.group)
    with np.errstate(divide="ignore", invalid="ignore"):
        lost = np.where(error > 0, error / allowed, 0.0)
    return found.rows, np.where(np.isnan(lost), np.inf, lost).max(axis=1)


def _filled(rows: Float32, group: int) -> Float32:
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % group))) if rows.shape[1] % group else rows
