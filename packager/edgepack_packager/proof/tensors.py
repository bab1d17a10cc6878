"""The tensor gates: every tensor of a finished variant, read back through its own headers, against the source.

They find what a sample of logits may miss. Row by row: rows that were swapped, left unwritten, taken from another
tensor or NaN. And what the bound of a single row must allow: weights that are a little louder or quieter, head by head
(as many rows as a head has); noise on top of the quantisation, and levels that are coarser than the scheme's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.proof.costs import kept
from edgepack_packager.proof.gates import Finding, gate
from edgepack_packager.targets import Form, Reader, Target

SCALE = 0.005
"""How far (w' . w) / (w . w) may be from 1, beside what quantisation itself moves it by."""

COST = 1.05
"""The error over what the scheme costs on the same rows. Measured: 1.00 where a format fixes its scales, 0.97 to 1.03
where ggml searches for them by another criterion than the least error."""

NEAREST = 1.01
"""The error over that of the nearest levels. Measured: 1.001 at most, from the rounding of scales."""

SAMPLE = 8
"""Every so many rows are quantised again to learn what that costs."""

FEW_BITS = 4
"""Up to which nearly all levels of a group are in use, so that its weights can be held to them."""

FEW_ROWS = 32
"""So many are quantised again of a tensor that has them, for a figure that chance moves little."""

Float64 = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Tensors:
    """The gates, each at the place where it is tightest, and the figures of each tensor in model order.

    ``error``: the relative one (L2). ``scale``: (w' . w) / (w . w). ``exact``: the share of the rows that lie on a grid
    which the variant holds, where any does. Of the ``quantised`` matrices, ``exact`` hold the grid of every row, and
    ``others`` lie on grids of 4 bits that their form does not hold.
    """

    findings: list[Finding]
    figures: dict[str, dict[str, float]]
    quantised: int = 0
    exact: int = 0
    others: int = 0


def prove(
    target: Target,
    variant: Path,
    weights: Weights,
    advance: Callable[[int], None],
    importance: Mapping[str, Float32] = MappingProxyType({}),
) -> Tensors:
    """Compare a variant with its source; ``advance`` is told the elements of each block.

    ``importance`` is what the writer weighed the errors of a column by, float32 [columns] by the tensor's name: so they
    are weighed here, but where each row or each weight is held by itself. Raises ``BuildError`` for a file that cannot
    be read back.
    """
    reader = target.read(variant, weights.decoder)
    tightest = _Tightest()
    sums: dict[str, Float64] = {}
    on_grids: dict[str, NDArray[np.int64]] = {}
    try:
        for name, start, stop in blocks(weights.decoder):
            pair = _Pair(weights.rows(name, start, stop), reader.rows(name, start, stop))
            _hold_rows(tightest, reader, name, start, pair)
            if pair.is_matrix:
                root = np.sqrt(importance[name]) if name in importance else None
                weighed = pair if root is None else _Pair(pair.expected * root, pair.actual * root)
                cost = _hold_cost(tightest, reader, name, start, pair, weighed, root)
                _hold_scale(tightest, name, start, weighed, weights.decoder.head_dim, cost)
                if (form := reader.form(name)).group > 1:
                    rows = _hold_grids(tightest, form, name, start, pair)
                    on_grids[name] = on_grids.get(name, np.zeros(3, np.int64)) + rows
            sums[name] = sums.get(name, np.zeros(3)) + np.array([pair.error.sum(), pair.power.sum(), pair.dot.sum()])
            advance(pair.expected.size)
    finally:
        reader.close()
    figures = {name: _figures(*three) for name, three in sums.items()}
    for name, (kept_there, _, rows) in on_grids.items():
        if kept_there:
            figures[name]["exact"] = float(kept_there / rows)
    exact, others = (sum(bool(three[i] == three[2]) for three in on_grids.values()) for i in (0, 1))
    return Tensors(tightest.findings, figures, len(on_grids), exact, others)


def _figures(error: float, power: float, dot: float) -> dict[str, float]:
    if not power:
        return {"error": float(np.sqrt(error))}
    return {"error": float(np.sqrt(error / power)), "scale": float(dot / power)}


class _Pair:
    """Rows as they should be and as they are: float32 [n, columns], and of each row three sums: float64 [n].

    ``error``: of the squared differences. ``power``: of the squares. ``dot``: of the products.
    """

    def __init__(self, expected: Float32, actual: Float32) -> None:
        self.is_matrix = expected.ndim == 2
        self.expected, self.actual = (rows.reshape(len(rows), -1) for rows in (expected, actual))
        difference = self.actual - self.expected
        self.error, self.power, self.dot = (
            np.einsum("rc,rc->r", one, other).astype(np.float64)
            for one, other in (
                (difference, difference),
                (self.expected, self.expected),
                (self.actual, self.expected),
            )
        )


class _Tightest:
    """Of each gate, the finding whose figure is closest to its limit or furthest beyond it."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, Finding]] = {}

    def take(self, name: str, values: Float64, limits: Float64, place: Callable[[int], str]) -> None:
        """Consider figures that must be at most their limits; ``place`` says where the one of an index is."""
        with np.errstate(divide="ignore", invalid="ignore"):
            share = np.where(values <= limits, np.where(limits > 0, values / limits, 0.0), values / limits)
        share = np.where(np.isnan(share), np.inf, share)  # NaN meets no limit
        index = int(share.argmax())
        if name not in self._found or share[index] > self._found[name][0]:
            held = gate(name, float(values[index]), "<=", float(f"{limits[index]:.3g}"))
            self._found[name] = float(share[index]), Finding(held, place(index))

    @property
    def findings(self) -> list[Finding]:
        return [finding for _, finding in self._found.values()]


def _hold_rows(tightest: _Tightest, reader: Reader, name: str, start: int, pair: _Pair) -> None:
    """Hold each row's error to the worst that its scheme's arithmetic allows, both relative to the row."""
    norm = np.sqrt(pair.power)
    unit = np.where(norm > 0, norm, 1.0)
    allowed = reader.bound(name) * norm + reader.floor(name)
    tightest.take(
        "tensors.row_error", np.sqrt(pair.error) / unit, allowed / unit, lambda row: f"row {start + row} of {name}"
    )


def _hold_cost(
    tightest: _Tightest, reader: Reader, name: str, start: int, pair: _Pair, weighed: _Pair, root: Float32 | None
) -> tuple[float, float]:
    """Hold a block's error to what its scheme costs on a sample of its rows, and to that of the nearest levels.

    ``weighed`` is the pair times ``root``, float32 [columns], where errors are weighed: which levels are nearest does
    not depend on that. Returns that cost as a share of the rows' power, and how far the scheme itself moves their scale
    from 1.
    """
    form = reader.form(name)
    sample = slice(None, None, max(1, min(SAMPLE, len(pair.power) // FEW_ROWS)))
    expected = np.ascontiguousarray(pair.expected[sample])
    rule, weights, power = kept(form, expected), weighed.expected[sample], weighed.power[sample].sum()
    rule = rule if root is None else rule * root
    cost = np.square(rule - weights).sum(dtype=np.float64)
    # Rows that lie on the scheme's levels may cost nothing, and a search by another criterion still a third of what
    # others cost: 2^-(b+1), half of which moves the scale. Of float32, two roundings.
    few = max(2.0 ** -(form.bits + 1), 2.0**-22)

    def least(of: _Pair) -> float:
        return float(of.power[sample].sum() * few**2 + len(expected) * reader.floor(name) ** 2)

    def hold(gate_name: str, of: _Pair, least_error: float, limit: float) -> None:
        ratio = np.sqrt(_over(of.error[sample].sum(), max(least_error, least(of))))
        place = _rows(name, start, start + len(pair.power))
        tightest.take(gate_name, np.array([ratio]), np.array([limit]), lambda _: place)

    hold("tensors.cost", weighed, cost, COST)
    if form.bits <= FEW_BITS:
        from edgepack_packager.proof import nearest

        levels = nearest.error(form, expected, np.ascontiguousarray(pair.actual[sample]))
        hold("tensors.nearest", pair, levels, NEAREST)
    share = float(_over(cost, power))
    moved = abs(float(np.vdot(rule, weights)) / power - 1) if power else 0.0
    return share, share + moved + (few / 2 if cost < least(weighed) else 0.0)


def _hold_grids(tightest: _Tightest, form: Form, name: str, start: int, pair: _Pair) -> NDArray[np.int64]:
    """Hold the rows that lie on grids to them.

    Returns how many hold theirs, how many lie on grids of 4 bits that the form does not hold, and all. A row of zeros
    counts with either.
    """
    from edgepack_packager.proof import exact

    count = len(pair.power)
    on, lost = exact.held(form, pair.expected, pair.actual)
    if on.size:
        tightest.take("tensors.grid", lost, np.ones(len(lost)), lambda index: f"row {start + on[index]} of {name}")
    zeros = int(((pair.power == 0) & (pair.error == 0)).sum())
    others = exact.on_grids(exact.FOUR_BITS, pair.expected) if on.size + zeros < count else on[:0]
    kept = int((lost <= 1).sum())
    return np.array([kept and kept + zeros, others.size and others.size + zeros, count])


def _hold_scale(tightest: _Tightest, name: str, start: int, pair: _Pair, rows: int, cost: tuple[float, float]) -> None:
    """Hold the scale of so many rows at a time to 1, but for what the scheme moves it by, and for chance.

    The nearest of a few levels leave as much of it out as their cost is of the power, which is more in a head whose
    weights suit the levels less than the others' do, up to twice; a grid that ends a step earlier on one side cuts what
    lies there; and errors of either sign add up.
    """
    share, moved = cost
    first = np.arange(0, len(pair.power), rows)
    power, dot, error = (np.add.reduceat(values, first) for values in (pair.power, pair.dot, pair.error))
    off = np.where(power > 0, np.abs(_over(dot, power) - 1), 0.0)
    more = np.clip(_over(error, power) - share, 0.0, share)
    allowed = SCALE + moved + more + 4 * np.sqrt(share / (rows * pair.expected.shape[1]))
    last = start + len(pair.power)
    tightest.take(
        "tensors.scale",
        off,
        allowed,
        lambda i: _rows(name, start + int(first[i]), min(start + int(first[i]) + rows, last)),
    )


def _rows(name: str, start: int, stop: int) -> str:
    return f"rows {start} to {stop - 1} of {name}"


def _over(x: ArrayLike, y: ArrayLike) -> Float64:
    """x / y, and 0 where both are 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(np.equal(x, 0) & np.equal(y, 0), 0.0, np.divide(x, y))
