"""What a model loses where one of its matrices is rounded: a few true divergences, and an error for all the others.

A small error of a matrix moves the predictions by its square: KL = gain * error, the error weighed by what a text
multiplies each column with, over what the matrix does there itself. Rounding single matrices would take a pass of the
reference for each; so whole bands of layers are rounded together, and then every role in all layers, and the gains are
those that give back the measured divergences, of bands and of roles, when they are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets import Model, Slot, Target

Float64 = NDArray[np.float64]

TEXTS, TOKENS = 2, 128
"""Windows of the calibration's text that divergences are measured on, and the ids that are taken of each."""

BANDS = 32
"""Groups of neighbouring layers, at most, that are rounded together."""

_ROUNDS = 50
"""Of fitting the gains: each brings bands and roles closer together, and ten are enough for six digits."""

_LEAST = 1e-9
"""Nats: less is the noise of float32."""

_RUNS, _RUN_ROWS, _SHARE = 8, 16, 32
"""Rows that an error is measured on: so many runs of so many rows, or one of ``_SHARE`` in all where that is more."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What each matrix loses for its error: nats for an error as large as the matrix's own product.

    ``bands`` and ``roles`` are the divergences that were measured, by what was rounded to ``coarse``.
    """

    gains: Mapping[str, float]
    bands: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, float] = field(default_factory=dict)


def texts(passes: Sequence[Sequence[Sequence[int]]]) -> list[Sequence[int]]:
    """Return what ``measure`` runs of a calibration's windows: the first ids of some that lie apart."""
    windows = [window for each in passes for window in each]
    count = min(TEXTS, len(windows))
    return [windows[index * len(windows) // count][:TOKENS] for index in range(count)]


def runs(decoder: Decoder) -> int:
    """Return how many times ``measure`` runs the reference."""
    return 1 + len(_bands(decoder)) + len(_roles(decoder))


def measure(
    weights: Weights, model: Model, texts: Sequence[Sequence[int]], progress: Callable[[], None] | None = None
) -> Sensitivity:
    """Return the gains of all matrices, measured on ``texts``: token ids, as many in each.

    ``progress`` is called after each of ``runs``. Memory: what ``reference.hidden`` takes of so many ids, and twice
    their logits. The model's ``importance`` weighs errors.
    """
    report = progress or (lambda: None)
    decoder = weights.decoder
    exact = list(_log_softmax(weights, texts))
    report()

    def divergence(names: frozenset[str]) -> float:
        pairs = zip(exact, _log_softmax(_Rounded(weights, names), texts), strict=True)
        found = np.concatenate([(np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64) for p, q in pairs])
        report()
        return max(float(found.mean()), _LEAST)

    roles, bands = _roles(decoder), _bands(decoder)
    of_roles = {role: divergence(names) for role, names in roles.items()}
    of_bands = {band: divergence(names) for band, names in bands.items()}
    errors = {
        name: error(model, weights, name, lambda rows, _: coarse(rows)) for names in roles.values() for name in names
    }
    gains: dict[str, float] = {
        name: of_roles[name] / max(errors[name], _LEAST) for name in ("embedding", "head") if name in of_roles
    }
    inner = [role for role in roles if role not in gains]
    cells = [[sum(errors[n] for n in sorted(bands[b] & roles[r])) for r in inner] for b in bands]
    table = np.maximum(cells, _LEAST)
    factors = fitted(table, np.array(list(of_bands.values())), np.array([of_roles[role] for role in inner]))
    for row, band in enumerate(bands.values()):
        for column, role in enumerate(inner):
            gains |= dict.fromkeys(sorted(band & roles[role]), float(factors[row, column]))
    return Sensitivity(gains, of_bands, of_roles)


def fitted(table: Float64, rows: Float64, columns: Float64) -> Float64:
    """Return factors a_i b_j, float64 of the table's shape, by which its rows and columns add up to these sums.

    Iterative proportional fitting (W. Deming and F. Stephan, Annals of Mathematical Statistics 11(4), 1940). Where the
    two have not the same total, as divergences do not quite add up, both are taken to the mean of it.
    """
    total = (rows.sum() + columns.sum()) / 2
    rows, columns = rows * (total / rows.sum()), columns * (total / columns.sum())
    a, b = np.ones(len(rows)), np.ones(len(columns))
    for _ in range(_ROUNDS):
        a = rows / (table * b).sum(axis=1)
        b = columns / (table * a[:, None]).sum(axis=0)
    return np.outer(a, b)


def losses(sensitivity: Sensitivity, target: Target, model: Model, weights: Weights, slot: Slot) -> dict[str, float]:
    """Return what a slot loses in each of its forms, in nats."""

    def of(form: str) -> float:
        def rounded(rows: Float32, name: str) -> Float32:
            return target.rounded(model, name, rows, form)

        return sum(sensitivity.gains[name] * error(model, weights, name, rounded) for name in slot.tensors)

    return {form: float(f"{of(form):.3g}") for form in slot.forms}


def error(model: Model, weights: Weights, name: str, rounded: Callable[[Float32, str], Float32]) -> float:
    """Return the weighed squared error of a matrix over its weighed square, on some of its rows."""
    lost = power = 0.0
    for start, stop in _sample(dict(weights.decoder.tensors())[name][0]):
        rows = weights.rows(name, start, stop)
        counts = model.importance.get(name, np.float32(1))
        lost += float((np.square(rounded(rows, name) - rows) * counts).sum(dtype=np.float64))
        power += float((np.square(rows) * counts).sum(dtype=np.float64))
    return lost / power if power else 0.0


def coarse(rows: Float32) -> Float32:
    """Return rows in plain 5 bits, 31 levels about zero for each 32: what is lost is far above float32's own noise."""
    filled = np.pad(rows, ((0, 0), (0, -rows.shape[1] % 32))).reshape(len(rows), -1, 32)
    scale = np.abs(filled).max(axis=2, keepdims=True) / np.float32(15)
    levels = np.rint(filled / np.where(scale > 0, scale, np.float32(1)))
    result: Float32 = (levels * scale).reshape(len(rows), -1)[:, : rows.shape[1]]
    return result


class _Rounded:
    """Weights, some matrices of which are rounded as they are read."""

    def __init__(self, weights: Weights, names: frozenset[str]) -> None:
        self._weights, self._names = weights, names
        self.decoder, self.dtype = weights.decoder, weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor."""
        rows = self._weights.rows(name, start, stop)
        return coarse(rows) if name in self._names else rows


def _roles(decoder: Decoder) -> dict[str, frozenset[str]]:
    """Return the matrices of each role: "attention.q" of all layers, "embedding", "head"."""
    found: dict[str, set[str]] = {}
    for name, shape in decoder.tensors():
        if len(shape) == 2:
            found.setdefault(name.split(".", 2)[2] if name.startswith("layers.") else name, set()).add(name)
    return {role: frozenset(names) for role, names in found.items()}


def _bands(decoder: Decoder) -> dict[str, frozenset[str]]:
    """Return the matrices of each band of layers: the first and the last alone, the others in groups of neighbours."""
    inner = max(0, decoder.n_layers - 2)
    count = min(inner, BANDS - 2)
    edges = [0, *(1 + index * inner // count for index in range(count)), decoder.n_layers - 1, decoder.n_layers]
    matrices = [name for name, shape in decoder.layer_tensors() if len(shape) == 2]
    return {
        f"layers {start} to {stop - 1}": frozenset(
            f"layers.{layer}.{name}" for layer in range(start, stop) for name in matrices
        )
        for start, stop in pairwise(edges)
        if start < stop
    }


def _sample(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows that are spread over a matrix."""
    count = min(-(-rows // _RUN_ROWS), max(_RUNS, rows // (_SHARE * _RUN_ROWS)))
    for index in range(count):
        start = index * rows // count
        yield start, min(start + _RUN_ROWS, rows)


def _log_softmax(weights: Weights, texts: Sequence[Sequence[int]]) -> Iterator[Float32]:
    """Yield the logarithms of what a model predicts after each id of each text: float32 [n, n_vocab]."""
    head = "embedding" if weights.decoder.tied else "head"
    seen: list[Float32] = []

    def see(name: str, states: Float32) -> None:
        if name == head:
            seen.append(states)

    reference.observe(weights, texts, see)
    for states in seen:
        logits = reference.head(weights, states)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        yield logits
