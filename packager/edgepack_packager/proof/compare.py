"""Figures that tell how far one set of logits is from another. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.logprobs import logprobs
from edgepack.measuring.evaluate import divergence
from edgepack.measuring.evaluate import mean as mean

Rows = Iterable[NDArray[np.float32]]
Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Positions:
    """How a model's next-token distributions differ from the reference's, position by position: float64 [n] each.

    ``kl``: KL(reference || model) in nats. ``same``: 1 where the likeliest token is the same, else 0. ``surprise`` and
    ``reference_surprise``: the negative log-likelihood of the next id, [n - 1].
    """

    kl: Float64
    same: Float64
    surprise: Float64
    reference_surprise: Float64


def nmse(model: Rows, reference: Rows) -> float:
    """Return sum((model - reference)^2) / sum(reference^2) over rows of equal shape, in float64."""
    error = power = 0.0
    for ours, theirs in zip(model, reference, strict=True):
        exact = theirs.astype(np.float64)
        error += float(np.square(ours - exact).sum())
        power += float(np.square(exact).sum())
    return error / power


def positions(model: Rows, reference: Rows, ids: Sequence[int]) -> Positions:
    """Compare logits row by row: row i follows ``ids[: i + 1]``. Both yield float32 [n_vocab] rows, one per id."""
    kl, same, surprise, expected = [], [], [], []
    for position, (ours, theirs) in enumerate(zip(model, reference, strict=True)):
        kl.append(divergence(theirs, ours))
        same.append(float(np.argmax(ours) == np.argmax(theirs)))
        if following := ids[position + 1 : position + 2]:
            surprise.append(-logprobs(ours, following)[0])
            expected.append(-logprobs(theirs, following)[0])
    return Positions(np.array(kl), np.array(same), np.array(surprise), np.array(expected))
