"""The gate of errors made good: what the products lose on a text has to be less than with the nearest levels.

The tensor gates hold each level next to what the errors before it leave of its weight, by the same factors as the
writer (``Meant``). Whether those are worth anything is asked here, without them: of what the matrices are multiplied
with on the calibration's text. Factors of another layer's inputs, or transposed, lose more than the nearest levels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack_packager import reference
from edgepack_packager.calibration.feedback import softened
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof.gates import Finding, gate
from edgepack_packager.targets import Form, Target
from edgepack_packager.targets.feedback import Feedback

TOKENS = 256
"""Of the text, that are run through the reference."""

CHANCE = 4
"""Standard errors by which a matrix's products may lose more than with the nearest levels: of random weights there is
nothing to make good, and either may lose less on some rows."""

GAINED = 0.999
"""What may be left, at most, of the error of the matrix that gains most. Measured: 0.68 of random weights."""

_SAME = 1.0001
"""By how much errors of the nearest levels differ where a weight lies half-way between two."""

_RUNS, _ROWS = 8, 16
"""Rows of a matrix that are looked at: so many runs of so many."""


class Meant:
    """What the levels of a matrix were chosen next to: the factors of its feedback, unpacked."""

    def __init__(self, feedback: Feedback) -> None:
        self._parts: list[tuple[NDArray[np.intp], Float32]] = [(part.columns, part.whole()) for part in feedback]

    def of(self, form: Form, expected: Float32, actual: Float32) -> Float32:
        """Return W + (W - W') U of rows W and what became of them, W': float32 [n, columns] each.

        It is W of rows that kept their nearest levels.
        """
        from edgepack_packager.proof import nearest

        goal, errors = expected.copy(), expected - actual
        for columns, factor in self._parts:
            goal[:, columns] += errors[:, columns] @ factor
        least = _power(nearest.values(form, expected, actual) - expected, axis=1)
        kept = _power(errors, axis=1) <= least * _SAME
        goal[kept] = expected[kept]
        return goal


def prove(
    target: Target,
    variant: Path,
    weights: Weights,
    names: Collection[str],
    text: Sequence[int],
    advance: Callable[[], None],
) -> Finding | None:
    """Return the finding of the matrix whose products gained least, of those ``names`` whose errors are made good, or
    that none gained.

    ``text`` are token ids; ``advance`` is called after each layer. None where every matrix lies on its levels.
    Raises ``BuildError`` for a file that cannot be read back.
    """
    from edgepack_packager.proof import nearest

    tightest: list[Finding] = []
    ratios: list[float] = []

    def see(name: str, inputs: Float32) -> None:
        if name not in names:
            return
        form, runs = reader.form(name), list(_sample(shapes[name][0]))
        expected = np.concatenate([weights.rows(name, *run) for run in runs])
        actual = np.concatenate([reader.rows(name, *run) for run in runs])
        closest = nearest.values(form, expected, actual)
        if _power(closest - expected) <= _power(expected) * 4.0 ** -(form.bits + 1):
            return  # on the levels: nothing is left to make good
        inputs = softened(inputs)
        ours, theirs = (_power(inputs @ (each - expected).T, axis=0) for each in (actual, closest))
        if not (ours.any() or theirs.any()):
            return
        error = CHANCE * (ours - theirs).std() * np.sqrt(len(ours))  # of the sum
        ratio, limit = (float(np.sqrt(each / theirs.sum())) for each in (ours.sum(), theirs.sum() + error))
        ratios.append(ratio)
        found = Finding(gate("tensors.products", ratio, "<=", float(f"{limit:.3g}")), name)
        if not tightest or not ratio / limit <= tightest[0].gate.value / tightest[0].gate.limit:
            tightest[:] = [found]

    shapes = dict(weights.decoder.tensors())
    with closing(target.read(variant, weights.decoder)) as reader:
        reference.observe(weights, [text[:TOKENS]], see, advance)
    if ratios and min(ratios) > GAINED:  # no level knows of another's error
        return Finding(gate("tensors.products", min(ratios), "<=", GAINED), "every matrix")
    return tightest[0] if tightest else None


def _power(x: Float32, axis: int | None = None) -> NDArray[np.float64]:
    found: NDArray[np.float64] = np.square(x).sum(axis=axis, dtype=np.float64)
    return found


def _sample(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows that are spread over a matrix."""
    count = min(_RUNS, -(-rows // _ROWS))
    for index in range(count):
        start = index * rows // count
        yield start, min(start + _ROWS, rows)
