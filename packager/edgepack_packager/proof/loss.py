"""What quantisation cost: a finished variant through its engine against the reference of the source.

A report, and a gate only where the builder sets one: how much a model loses in 4 bits is the model's affair, and no
figure of it tells a sound conversion from a broken one. The prose and the random ids of the probe stand apart: a
trained model has no opinion of random ids, so that its likeliest token there is nearly noise.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice

import numpy as np

from edgepack.bundle.manifest import Loss, ProbePart, SelfTest
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import compare
from edgepack_packager.proof.probe import Probe

SELF_TEST_TOKENS = 32
# A likeliest token that leads by less than this (in logits) may be another one on another device.
SAFE_MARGIN = 0.5
# The natural logarithm of what a ratio of perplexities is cut to; a float ends at e^709.
_LARGEST = 700.0


def measure(logits: Iterable[Float32], expected: Iterable[Float32], probe: Probe) -> dict[ProbePart, Loss]:
    """Return the loss on the probe's "text" and on its "random" ids, without a part that is empty.

    ``logits`` are the engine's and ``expected`` the reference's: float32 [n_vocab] for each id of the probe.
    """
    ours, theirs = iter(logits), iter(expected)
    parts: dict[ProbePart, tuple[int, ...]] = {"text": probe.ids[: probe.text], "random": probe.ids[probe.text :]}
    return {
        name: _loss(compare.positions(islice(ours, len(ids)), islice(theirs, len(ids)), ids))
        for name, ids in parts.items()
        if ids
    }


def self_test(logits: Iterable[Float32], probe: Probe) -> SelfTest:
    """Return what a device replays: the first ids, and the likeliest token after each where its lead is safe."""
    ids = list(probe.ids[:SELF_TEST_TOKENS])
    return SelfTest(ids=ids, top1=list(_likeliest(islice(logits, len(ids)))))


def _likeliest(rows: Iterable[Float32]) -> Iterator[int | None]:
    for row in rows:
        second, first = np.partition(row, -2)[-2:]
        yield int(np.argmax(row)) if first - second >= SAFE_MARGIN else None


def _loss(found: compare.Positions) -> Loss:
    (kl, kl_error), (top1, top1_error) = compare.mean(found.kl), compare.mean(found.same)
    # A single id has none after it.
    more, more_error = compare.mean(found.surprise - found.reference_surprise) if found.surprise.size else (0.0, 0.0)
    ratio = float(np.exp(min(more, _LARGEST)))
    figures = (kl, kl_error, top1, top1_error, ratio, min(ratio * more_error, float(np.exp(_LARGEST))))
    return Loss(len(found.kl), *(float(f"{figure:.3g}") for figure in figures))
