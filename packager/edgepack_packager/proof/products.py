"""The gate of errors made good: what the products lose on a text has to be less than with the nearest levels.

The tensor gates hold each level next to what the errors before it leave of its weight, by the same factors as the
writer (``meant``). Whether those are worth anything is asked here, without them: of what the matrices are multiplied
with on the calibration's text. Factors of another layer's inputs, or transposed, lose more than the nearest levels.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof.gates import Finding, gate
from edgepack_packager.targets import Target
from edgepack_packager.targets.feedback import Feedback

TOKENS = 256
"""Of the text, that are run through the reference."""

LIMIT = 1.0
"""The error of a matrix's products over that with the nearest levels."""

_RUNS, _ROWS = 8, 16
"""Rows of a matrix that are looked at: so many runs of so many."""


class Meant:
    """What the levels of a matrix were chosen next to: the factors of its feedback, unpacked."""

    def __init__(self, feedback: Feedback) -> None:
        self._parts: list[tuple[NDArray[np.intp], Float32]] = [(part.columns, part.whole()) for part in feedback]

    def of(self, expected: Float32, actual: Float32) -> Float32:
        """Return W + (W - W') U of rows W and what became of them, W': float32 [n, columns] each."""
        goal, errors = expected.copy(), expected - actual
        for columns, factor in self._parts:
            goal[:, columns] += errors[:, columns] @ factor
        return goal


def prove(
    target: Target,
    variant: Path,
    weights: Weights,
    names: Collection[str],
    text: Sequence[int],
    advance: Callable[[], None],
) -> Finding | None:
    """Return the finding of the matrix whose products gained least, of those ``names`` whose errors are made good.

    ``text`` are token ids; ``advance`` is called after each layer. None where every matrix lies on its levels.
    Raises ``BuildError`` for a file that cannot be read back.
    """
    from edgepack_packager.proof import nearest

    worst: dict[str, float] = {}

    def see(name: str, inputs: Float32) -> None:
        if name not in names:
            return
        form, lost, least, power = reader.form(name), np.zeros(2), 0.0, 0.0
        for start, stop in _sample(shapes[name][0]):
            expected, actual = weights.rows(name, start, stop), reader.rows(name, start, stop)
            closest = nearest.values(form, expected, actual)
            errors = [each - expected for each in (actual, closest)]
            lost += [float(np.square(inputs @ each.T).sum(dtype=np.float64)) for each in errors]
            least += float(np.square(errors[1]).sum(dtype=np.float64))
            power += float(np.square(expected).sum(dtype=np.float64))
        if not least <= power * 4.0 ** -(form.bits + 1):  # on the levels, nothing is left to make good
            worst[name] = float(np.sqrt(lost[0] / lost[1])) if lost[1] else np.inf

    shapes = dict(weights.decoder.tensors())
    with closing(target.read(variant, weights.decoder)) as reader:
        reference.observe(weights, [text[:TOKENS]], see, advance)
    if not worst:
        return None
    name = max(worst, key=lambda each: np.inf if np.isnan(worst[each]) else worst[each])
    return Finding(gate("tensors.products", worst[name], "<=", LIMIT), name)


def _sample(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows that are spread over a matrix."""
    count = min(_RUNS, -(-rows // _ROWS))
    for index in range(count):
        start = index * rows // count
        yield start, min(start + _ROWS, rows)
