"""The tensor gate: every tensor of a finished variant, read back through its own headers, against the source.

It finds what a sample of logits may miss: rows that were swapped, left unwritten, taken from another tensor or NaN.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from edgepack.errors import ProofError
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.proof.gates import Finding, gate
from edgepack_packager.targets import Target


@dataclass(frozen=True, slots=True)
class Tensors:
    """The gates, and for the evidence the relative error of each tensor (L2) in model order."""

    findings: list[Finding]
    errors: dict[str, float]


def prove(target: Target, variant: Path, weights: Weights, advance: Callable[[int], None]) -> Tensors:
    """Compare a variant with its source row by row; ``advance`` is told the elements of each block.

    Raises ``ProofError`` at the first row whose error exceeds its scheme's bound.
    """
    reader = target.read(variant, weights.decoder)
    error: dict[str, float] = {}
    power: dict[str, float] = {}
    count = 0
    try:
        for name, start, stop in blocks(weights.decoder):
            expected, actual = weights.rows(name, start, stop), reader.rows(name, start, stop)
            distance, norm = _norms(expected, actual)
            allowed = reader.bound(name) * norm + np.float32(reader.floor(name))
            outside = np.flatnonzero(~(distance <= allowed))
            if outside.size:
                row = int(outside[0])
                raise ProofError(
                    f"{variant.name} failed the proof: row {start + row} of {name} differs from the source by "
                    f"{distance[row]:.3g} where its scheme allows {allowed[row]:.3g}.",
                    hint="The writer or the file system changed the weights; report this.",
                )
            error[name] = error.get(name, 0.0) + float(np.square(distance).sum())
            power[name] = power.get(name, 0.0) + float(np.square(norm).sum())
            count += len(expected)
            advance(expected.size)
    finally:
        reader.close()
    errors = {name: float(np.sqrt(error[name] / power[name])) if power[name] else 0.0 for name in error}
    worst = max(errors.values())
    held = gate("tensors.worst_relative_error", worst, "<=", max(map(reader.bound, errors)))
    return Tensors([Finding(held)], errors)


def _norms(expected: Float32, actual: Float32) -> tuple[Float32, Float32]:
    if expected.shape != actual.shape:
        return np.full(len(expected), np.inf, np.float32), np.zeros(len(expected), np.float32)
    if expected.ndim == 1:
        return np.abs(actual - expected), np.abs(expected)
    difference = actual - expected
    return np.sqrt(np.einsum("rc,rc->r", difference, difference)), np.sqrt(np.einsum("rc,rc->r", expected, expected))
