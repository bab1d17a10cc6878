"""What a model loses less where each error of 4 bits is made good in the columns that are rounded after it (GPTQ).

    python benchmarks/feedback.py FOLDER TEXT [--tokens 1024] [--targets onnx mlx q4_0] [--damp 0.01 0.3 1] [--uniform]
        [--calibrate TEXT]

The scales are those of calibrated variants. Levels are chosen column by column, the loudest first: each takes what the
errors before it leave of the product, to the second order. Such errors come from the second moments of the inputs H,
of the source's own activations, to which ``--damp`` adds that share of their diagonal, or with ``--uniform`` of its
mean: H of a few thousand tokens says more of them than of others. The last column is that of the least squares on the
calibration's text itself: how much of the error of the products is left there.

Embedding and head stay exact, as no feedback reaches them here. The text of the calibration is the built-in one, or
that of --calibrate; judged is another one, by the reference with the numbers that a payload would hold. SmolLM2: 50
CPU seconds for a row. The form W + (W - W') U of the feedback, with H = (U + 1) D (U + 1)^T, is from arXiv:2307.13304.
"""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from quality import compare, from_reference
from quality_subject import InMemory, Subject, subject_of
from threadpoolctl import threadpool_limits

from edgepack_packager import reference
from edgepack_packager.calibration.text import BUILT_IN
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.gguf import weighed
from edgepack_packager.targets.onnx import blocks
from edgepack_packager.targets.onnx.forms import FORMS

BLOCK = 128
"""Columns that are rounded one by one, before those behind them learn of their errors."""

Float64 = NDArray[np.float64]

TOP = np.float32(15)
"""The highest level; the lowest is 0."""


@dataclass(frozen=True, slots=True)
class Grid:
    """Levels float32 [n, columns], and scales and biases of groups of so many columns, float32 [n, groups]:
    value = level scale + bias."""

    group: int
    scales: Float32
    biases: Float32
    levels: Float32

    @property
    def values(self) -> Float32:
        """What the levels stand for: float32 [n, columns]."""
        columns = self.levels.shape[1]
        scales, biases = (np.repeat(each, self.group, axis=1)[:, :columns] for each in (self.scales, self.biases))
        found: Float32 = self.levels * scales + biases
        return found


def main() -> None:
    """Print the table, in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("text", type=Path)
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--targets", nargs="+", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--damp", nargs="+", type=float, default=[1.0])
    parser.add_argument("--uniform", action="store_true", help="of the diagonal's mean, not of each element of it")
    parser.add_argument("--calibrate", default=BUILT_IN)
    asked = parser.parse_args()
    subject = replace(subject_of("model", asked.folder, asked.text, asked.tokens), text=asked.calibrate)
    print("| 4 bits | damp | KL | top-1 | perplexity | error on its own text |\n|---|---:|---:|---:|---:|---:|")
    for target in asked.targets:
        damps = [None, *asked.damp]
        for damp, (weights, left) in zip(damps, rounded(subject, GRIDS[target], damps, asked.uniform), strict=True):
            logits = (from_reference(weights, window) for window in subject.windows)
            kl, same, loss, _ = compare(subject.weights, subject.windows, subject.states, logits)
            error = kl.std() / np.sqrt(len(kl))
            figures = f"{kl.mean():.4f} ± {error:.4f} | {same.mean():.1%} | {np.exp(loss.mean()):.2f} | {left:.2f}"
            print(f"| {target} | {'no feedback' if damp is None else f'{damp:g}'} | {figures} |", flush=True)


def rounded(
    subject: Subject, grid: Callable[[Float32, Float32], Grid], damps: Sequence[float | None], uniform: bool
) -> Iterator[tuple[InMemory, float]]:
    """Yield, for each share, the model with every matrix of its layers on a grid, and the mean of the error left.

    Moments are added up of one product at a time, as ``reference.observe`` shows its inputs: those of q serve k and v
    too, those of gate up.
    """
    source, counts = subject.weights, subject.calibrated.importance
    models = [dict(source.tensors) for _ in damps]
    left: list[list[float]] = [[] for _ in damps]
    moments: dict[str, Float32] = {}

    def finish() -> None:
        for name, sums in moments.items():
            factors = [None if damp is None else feedback(sums, damp, uniform) for damp in damps]
            block, role = name.rsplit(".", 1)
            for matrix in (f"{block}.{other}" for other in {"q": "qkv", "gate": ("gate", "up")}.get(role, (role,))):
                rows = source.tensors[matrix]
                found = grid(rows, counts[matrix])
                plain = _lost(rows - found.values, sums)
                for tensors, shares, factor in zip(models, left, factors, strict=True):
                    tensors[matrix] = levelled(rows, found, *factor) if factor else found.values
                    shares.append(_lost(rows - tensors[matrix], sums) / plain if factor else 1.0)
        moments.clear()

    def see(name: str, inputs: Float32) -> None:
        if not name.startswith("layers.") or name.endswith((".k", ".v", ".up")):
            return
        if name not in moments:
            finish()
        moments[name] = moments.get(name, np.float32(0)) + inputs.T @ inputs

    texts = [window for some in subject.passes for window in some]
    with threadpool_limits(limits=1, user_api="blas"):
        reference.observe(source, texts, see)
        finish()
    for tensors, shares in zip(models, left, strict=True):
        yield InMemory(source.decoder, "f32", tensors), float(np.mean(shares))


def feedback(moments: Float32, damp: float, uniform: bool) -> tuple[NDArray[np.intp], Float32]:
    """Return the order of the columns, the loudest first, and U in it: float32 [columns, columns], zero from the
    diagonal down. H = (U + 1) D (U + 1)^T, by a Cholesky factor of H from its last column on."""
    diagonal = moments.diagonal().astype(np.float64)
    order = np.argsort(-diagonal, kind="stable")
    whole = moments[np.ix_(order, order)].astype(np.float64)
    more = np.full_like(diagonal, diagonal.mean()) if uniform else diagonal[order]
    whole[np.diag_indices_from(whole)] += damp * more + np.finfo(np.float32).tiny
    factor: Float64 = np.linalg.cholesky(whole[::-1, ::-1])[::-1, ::-1]
    return order, np.triu(factor / factor.diagonal(), 1).astype(np.float32)


def levelled(rows: Float32, grid: Grid, order: NDArray[np.intp], factor: Float32) -> Float32:
    """Return rows [n, columns] on the levels of a grid, each next to what the errors before it leave of its weight."""
    groups = order // grid.group
    whole, errors = rows[:, order], np.zeros_like(rows)
    for start in range(0, rows.shape[1], BLOCK):
        meant = whole[:, start : start + BLOCK] + errors[:, :start] @ factor[:start, start : start + BLOCK]
        for column in range(start, start + meant.shape[1]):
            scale, bias = grid.scales[:, groups[column]], grid.biases[:, groups[column]]
            goal = meant[:, column - start] + errors[:, start:column] @ factor[start:column, column]
            level = np.clip(np.rint((goal - bias) / np.where(scale != 0, scale, np.float32(1))), 0, TOP)
            errors[:, column] = whole[:, column] - (level * scale + bias)
    result = np.empty_like(rows)
    result[:, order] = whole - errors
    return result


def _lost(errors: Float32, moments: Float32) -> float:
    return float(np.einsum("rc,rc->", errors, errors @ moments, dtype=np.float64))


def _onnx(rows: Float32, counts: Float32) -> Grid:
    codes, scales, zeros = blocks.quantize(rows, FORMS["int4"], counts)
    levels = blocks.dequantize(codes, np.ones_like(scales), np.zeros_like(zeros), rows.shape[1], 4)
    return Grid(32, scales, -scales * zeros, levels)


def _q4_0(rows: Float32, counts: Float32) -> Grid:
    codes, scales = weighed.signed(rows, counts, 4)
    scales = scales.reshape(len(rows), -1)
    return Grid(32, scales, scales * np.float32(-8), codes.reshape(rows.shape).astype(np.float32))


def _mlx(rows: Float32, counts: Float32) -> Grid:
    mlx = importlib.import_module("edgepack_packager.targets.mlx.quantize")  # the package has a function of that name
    packed, scales, biases = mlx.quantize(rows, 4, "bf16", search=True, importance=counts)
    return Grid(64, scales, biases, mlx.dequantize(packed, np.ones_like(scales), np.zeros_like(biases), 4))


GRIDS: dict[str, Callable[[Float32, Float32], Grid]] = {"onnx": _onnx, "mlx": _mlx, "q4_0": _q4_0}


if __name__ == "__main__":
    main()
