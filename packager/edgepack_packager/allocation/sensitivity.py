"""What a model loses where one of its matrices is rounded: a few true divergences, and an error for all the others.

A small error of a matrix moves the predictions by its square: KL = gain * error, the error weighed by what a text
multiplies each column with, over what the matrix does there itself. Rounding single matrices would take a pass of the
reference for each; so whole bands of layers are rounded together, and then every role in all layers, and the gains are
those that give back the measured divergences, of bands and of roles, when they are added up. Where one matrix carries
most of what its band or its role loses, that tells too much of its neighbours: so those that are told most are rounded
alone, one after the other, and what they lose is left out of the sums of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from statistics import median

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder, layer_of
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets import Model, Slot, Target

Float64 = NDArray[np.float64]

TEXTS, TOKENS = 2, 128
"""Windows of the calibration's text that divergences are measured on, and the ids that are taken of each."""

BANDS = 32
"""Groups of neighbouring layers, at most, that are rounded together."""

ALONE = 4
"""Matrices of the layers that are rounded alone. Of SmolLM2, where the down projection of one layer does a
sixth of all, the first two make most of what is gained."""

_REST = 0.05
"""Of what a band or a role loses, so much is left for its others at least: divergences do not quite add up."""

_ROUNDS = 50
"""Of fitting the gains: each brings bands and roles closer together, and ten are enough for six digits."""

_LEAST = 1e-9
"""Nats: less is the noise of float32."""

_EVENED = 0.4
"""How far an even choice trusts the role of a matrix more than the matrix: what is chosen for its little loss is what
was measured too low more often than not, of so few ids. Which choice is better, only a measure of the whole tells."""

_RUNS, _RUN_ROWS, _SHARE = 8, 16, 32
"""Rows that an error is measured on: so many runs of so many rows, or one of ``_SHARE`` in all where that is more."""


@dataclass(frozen=True, slots=True)
class Sensitivity:
    """What each matrix loses for its error: nats for an error as large as the matrix's own product.

    ``bands``, ``roles`` and ``alone`` are the divergences that were measured, by what was rounded to ``coarse``.
    """

    gains: Mapping[str, float]
    bands: Mapping[str, float] = field(default_factory=dict)
    roles: Mapping[str, float] = field(default_factory=dict)
    alone: Mapping[str, float] = field(default_factory=dict)


def texts(passes: Sequence[Sequence[Sequence[int]]]) -> list[Sequence[int]]:
    """Return what ``measure`` runs of a calibration's windows: the first ids of some that lie apart."""
    windows = [window for each in passes for window in each]
    count = min(TEXTS, len(windows))
    return [windows[index * len(windows) // count][:TOKENS] for index in range(count)]


def runs(decoder: Decoder) -> int:
    """Return how many times ``measure`` runs the reference."""
    return 1 + len(_bands(decoder)) + len(_roles(decoder)) + ALONE


def measure(
    weights: Weights, model: Model, texts: Sequence[Sequence[int]], progress: Callable[[], None] | None = None
) -> Sensitivity:
    """Return the gains of all matrices, measured on ``texts``: token ids, as many in each.

    ``progress`` is called after each of ``runs``. Memory: what ``reference.hidden`` takes of so many ids, and twice
    their logits. The model's ``importance`` weighs errors.
    """
    report = progress or (lambda: None)
    decoder = weights.decoder
    divergence = _Divergence(weights, texts, report)
    roles, bands = _roles(decoder), _bands(decoder)
    of_roles = {role: divergence.of(names) for role, names in roles.items()}
    of_bands = {band: divergence.of(names) for band, names in bands.items()}
    errors = {
        name: max(error(model, weights, name, lambda rows, _: coarse(rows)), _LEAST)
        for names in roles.values()
        for name in names
    }
    outer = {role: lost for role, lost in of_roles.items() if role in roles[role]}  # what is in no layer
    inner = {role: names for role, names in roles.items() if role not in outer}
    alone: dict[str, float] = {}
    lost = told(errors, (bands, of_bands), (inner, of_roles), alone)
    for _ in range(ALONE):
        most = max(sorted(lost.keys() - alone.keys()), key=lambda name: lost[name])
        alone[most] = divergence.of(frozenset({most}))
        lost = told(errors, (bands, of_bands), (inner, of_roles), alone)
    gains = {name: nats / errors[name] for name, nats in (lost | outer).items()}
    return Sensitivity(gains, of_bands, of_roles, alone)


class _Divergence:
    """What rounding some matrices does to the predictions after each id of some texts."""

    def __init__(self, weights: Weights, texts: Sequence[Sequence[int]], report: Callable[[], None]) -> None:
        self._weights, self._texts, self._report = weights, texts, report
        self._exact = list(_log_softmax(weights, texts))
        report()

    def of(self, names: frozenset[str]) -> float:
        """Return the mean of KL(weights || weights with those rounded), nats."""
        rounded = Rounded(self._weights, lambda name, rows: coarse(rows) if name in names else rows)
        pairs = zip(self._exact, _log_softmax(rounded, self._texts), strict=True)
        found = np.concatenate([(np.exp(p) * (p - q)).sum(axis=-1, dtype=np.float64) for p, q in pairs])
        self._report()
        return max(float(found.mean()), _LEAST)


Groups = tuple[Mapping[str, frozenset[str]], Mapping[str, float]]
"""Matrices by what they have in common, and what each of those groups loses together."""


def told(errors: Mapping[str, float], bands: Groups, roles: Groups, alone: Mapping[str, float]) -> dict[str, float]:
    """Return what each matrix of the layers loses, nats: as measured ``alone``, or its part of what its band and its
    role do. ``errors`` are those of the matrices as they were rounded for it."""

    def left(groups: Groups) -> Float64:
        members, lost = groups
        measured = {name: sum(alone.get(each, 0) for each in sorted(names)) for name, names in members.items()}
        return np.array([max(lost[name] - measured[name], _REST * lost[name]) for name in members])

    cells = [[sorted(band & role - alone.keys()) for role in roles[0].values()] for band in bands[0].values()]
    table = np.maximum([[sum(errors[name] for name in cell) for cell in row] for row in cells], _LEAST)
    factors = fitted(table, left(bands), left(roles))
    found = {
        name: float(factors[row, column]) * errors[name]
        for row, line in enumerate(cells)
        for column, cell in enumerate(line)
        for name in cell
    }
    return found | dict(alone)


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


def evened(measured: Sensitivity) -> Sensitivity:
    """Return gains that are nearer to the median of their role, by ``_EVENED`` of the way in logarithms."""
    roles: dict[str, list[float]] = {}
    for name, gain in measured.gains.items():
        roles.setdefault(_role(name), []).append(gain)
    middle = {role: median(gains) for role, gains in roles.items()}
    gains = {
        name: gain ** (1 - _EVENED) * middle[_role(name)] ** _EVENED if gain > 0 else gain
        for name, gain in measured.gains.items()
    }
    return replace(measured, gains=gains)


def losses(sensitivity: Sensitivity, errors: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Return what a slot loses in each of its forms, in nats; ``errors`` as the function of that name returns."""
    return {
        form: float(f"{sum(sensitivity.gains[name] * each for name, each in own.items()):.3g}")
        for form, own in errors.items()
    }


def errors(target: Target, model: Model, weights: Weights, slot: Slot) -> dict[str, dict[str, float]]:
    """Return the ``error`` of each matrix of a slot, by the name of the form and its own.

    It adds up single columns, and so knows nothing of errors that others make good: all forms of fewer than 8 bits
    gain by that about alike.
    """
    model = replace(model, feedback={})

    def of(form: str, name: str) -> float:
        return error(model, weights, name, lambda rows, _: target.rounded(model, name, rows, form))

    return {form: {name: of(form, name) for name in slot.tensors} for form in slot.forms}


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


class Rounded:
    """Weights that are rounded as they are read: ``rounded`` makes of rows of a tensor what the model has of them."""

    def __init__(self, weights: Weights, rounded: Callable[[str, Float32], Float32]) -> None:
        self._weights, self._rounded = weights, rounded
        self.decoder, self.dtype = weights.decoder, weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor."""
        return self._rounded(name, self._weights.rows(name, start, stop))


def _roles(decoder: Decoder) -> dict[str, frozenset[str]]:
    """Return the matrices of each role: "attention.q" of all layers, "embedding", "head"."""
    found: dict[str, set[str]] = {}
    for name, shape in decoder.tensors():
        if len(shape) == 2:
            found.setdefault(_role(name), set()).add(name)
    return {role: frozenset(names) for role, names in found.items()}


def _role(name: str) -> str:
    return name.split(".", 2)[2] if name.startswith("layers.") else name


def _bands(decoder: Decoder) -> dict[str, frozenset[str]]:
    """Return the matrices of each band of layers: the first and the last alone, the others in groups of neighbours."""
    inner = max(0, decoder.n_layers - 2)
    count = min(inner, BANDS - 2)
    edges = [0, *(1 + index * inner // count for index in range(count)), decoder.n_layers - 1, decoder.n_layers]
    matrices = [name for name, shape in decoder.tensors() if name.startswith("layers.") and len(shape) == 2]
    return {
        f"layers {start} to {stop - 1}": frozenset(name for name in matrices if start <= layer_of(name) < stop)
        for start, stop in pairwise(edges)
        if start < stop
    }


def _sample(rows: int) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of runs of rows that are spread over a matrix."""
    count = min(-(-rows // _RUN_ROWS), max(_RUNS, rows // (_SHARE * _RUN_ROWS)))
    for index in range(count):
        start = index * rows // count
        yield start, min(start + _RUN_ROWS, rows)


def states(weights: Weights, texts: Sequence[Sequence[int]]) -> list[Float32]:
    """Return the normed states after each id of each text, as many in each: float32 [n, h], in one pass."""
    head = "embedding" if weights.decoder.tied else "head"
    seen: list[Float32] = []

    def see(name: str, inputs: Float32) -> None:
        if name == head:
            seen.append(inputs)

    reference.observe(weights, texts, see)
    return seen


def _log_softmax(weights: Weights, texts: Sequence[Sequence[int]]) -> Iterator[Float32]:
    """Yield the logarithms of what a model predicts after each id of each text: float32 [n, n_vocab]."""
    for each in states(weights, texts):
        logits = reference.head(weights, each)
        logits -= logits.max(axis=-1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(axis=-1, keepdims=True))
        yield logits
