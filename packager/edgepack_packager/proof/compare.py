"""Figures that tell how far one set of logits is from another. Pure: arrays in, numbers out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Rows = Iterable[NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Difference:
    """How a model's logits differ from the reference's.

    ``nmse``: sum of squared differences over the reference's sum of squares. ``kl``: mean over positions of
    KL(reference || model) of the next-token distributions, in nats. ``top1``: fraction of positions with the same
    likeliest token. ``perplexity`` and ``reference_perplexity``: exp of the mean negative log-likelihood of the text;
    ``perplexity_ratio``: the one over the other, 1 where nothing was lost, also where both are beyond a float.
    """

    nmse: float
    kl: float
    top1: float
    perplexity: float
    reference_perplexity: float
    perplexity_ratio: float


def nmse(model: Rows, reference: Rows) -> float:
    """Return sum((model - reference)^2) / sum(reference^2) over rows of equal shape, in float64."""
    error = power = 0.0
    for ours, theirs in zip(model, reference, strict=True):
        exact = theirs.astype(np.float64)
        error += float(np.square(ours - exact).sum())
        power += float(np.square(exact).sum())
    return error / power


def difference(model: Rows, reference: Rows, ids: Sequence[int], text: int) -> Difference:
    """Compare logits row by row: row i follows ``ids[: i + 1]``; the first ``text`` ids are prose.

    Both iterables yield float32 [n_vocab] rows, one per id. The perplexity is over the prose, or over all ids
    where there is none.
    """
    scored = text if text > 1 else len(ids)
    error = power = divergence = 0.0
    same = 0
    loss = loss_reference = 0.0
    for position, (ours, theirs) in enumerate(zip(model, reference, strict=True)):
        exact = theirs.astype(np.float64)
        error += float(np.square(ours - exact).sum())
        power += float(np.square(exact).sum())
        log_p, log_q = _log_softmax(exact), _log_softmax(ours.astype(np.float64))
        divergence += float(np.dot(np.exp(log_p), log_p - log_q))
        same += int(np.argmax(ours) == np.argmax(theirs))
        if position + 1 < scored:
            loss -= float(log_q[ids[position + 1]])
            loss_reference -= float(log_p[ids[position + 1]])
    pairs = scored - 1
    return Difference(
        nmse=error / power,
        kl=divergence / len(ids),
        top1=same / len(ids),
        perplexity=_exp(loss / pairs),
        reference_perplexity=_exp(loss_reference / pairs),
        perplexity_ratio=_exp((loss - loss_reference) / pairs),
    )


def _exp(value: float) -> float:
    with np.errstate(over="ignore"):
        return float(np.exp(value))


def _log_softmax(logits: NDArray[np.float64]) -> NDArray[np.float64]:
    shifted = logits - logits.max()
    return np.asarray(shifted - np.log(np.exp(shifted).sum()))
