"""Refuses so few bits that ordinary weights make no sense in them: 2, unless the weights lie on a grid of as few levels
or a text chose the scales."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.errors import UsageError
from edgepack_packager.checkpoint.weights import Weights
from edgepack_packager.targets import Form, Request, Target, grids

COARSE = 2
"""Bits of a scheme up to which its plain rule loses most of what a trained model knows."""

_FOUR_LEVELS = Form("affine", COARSE, 32, "f32")
_ROWS = 4
"""So many of each matrix are looked at: a row lies on a grid by chance with less than 2^-64."""


def is_coarse(target: Target, scheme: str) -> bool:
    """Say whether ordinary weights make no sense in a scheme without a calibration."""
    return target.schemes[scheme] <= COARSE or scheme in target.needs_calibration


def refuse(requests: Sequence[Request], weights: Weights) -> None:
    """Raise ``UsageError`` for a scheme that makes nonsense of these weights: it is coarse, not calibrated, and half of
    the layers' matrices or more lie on no grid of four levels. What is for grids alone refuses others as it is written.
    """
    loose = [each for each in requests if each.scheme not in each.target.for_grids]
    bare = [each for each in loose if is_coarse(each.target, each.scheme) and not each.calibrated]
    if not bare or _lies_on_grids(weights):
        return
    raise UsageError(
        f"{bare[0].id} would be nonsense: the weights lie on no grid of so few levels, and no text says which errors "
        "count.",
        hint="Add --calibrate built-in, or choose more bits.",
    )


def _lies_on_grids(weights: Weights) -> bool:
    matrices = [
        (name, shape)
        for name, shape in weights.decoder.tensors()
        if len(shape) == 2 and name.startswith("layers.") and shape[1] % _FOUR_LEVELS.group == 0
    ]
    found = (grids.recover(weights.rows(name, 0, _ROWS), _FOUR_LEVELS) for name, _ in matrices)
    return 2 * sum(on is not None for on in found) > len(matrices)
