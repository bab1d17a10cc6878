"""The tensor gates: every tensor of a finished variant, read back through its own headers, against the source.

They find what a sample of logits may miss. Row by row: rows that were swapped, left unwritten, taken from another
tensor or NaN. And what the bound of a single row must allow: weights that are a little louder or quieter, head by head
(as many rows as a head has); noise on top of the quantisation, and levels that are coarser than the scheme's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from edgepack_packager.checkpoint.weights import Float32, Weights, blocks, row_blocks
from edgepack_packager.proof.costs import kept
from edgepack_packager.proof.gates import Finding, gate
from edgepack_packager.proof.products import Meant
from edgepack_packager.proof.sums import of_rows
from edgepack_packager.targets import Form, Reader, Target
from edgepack_packager.targets.feedback import FARTHEST, Feedback

SCALE = 0.005
"""How far (w' . w) / (w . w) may be from 1, beside what quantisation itself moves it by."""

COST = 1.05
"""The error over what the scheme costs on the same rows. Measured: 1.00 where a format fixes its scales, 0.97 to 1.03
where ggml searches for them by another criterion than the least error."""

NEAREST = 1.01
"""The error over that of the nearest levels. Measured: 1.001 at most, from the rounding of scales."""

WHOLE = 0.95
"""The error of a row, relative to it, that is too near to that of a row of zeros."""

SAMPLE = 8
"""Every so many rows are quantised again to learn what that costs."""

FEW_BITS = 4
"""Up to which nearly all levels of a group are in use, so that its weights can be held to them."""

TOGETHER = frozenset({"iq3_s"})
"""Kinds whose weights share their levels, so that the nearest of each alone may not be had."""

FEW_ROWS = 32
"""So many are quantised again of a tensor that has them, for a figure that chance moves little."""

PART = 1 << 19
"""Weights that are read and compared at a time, so that all passes over them find them in the cache."""

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
    feedback: Mapping[str, Feedback] = MappingProxyType({}),
) -> Tensors:
    """Compare a variant with its source; ``advance`` is told the elements of each block.

    ``importance`` is what the writer weighed the errors of a column by, float32 [columns] by the tensor's name: so they
    are weighed here, but where each row or each weight is held by itself. ``feedback`` is what it made errors good by:
    levels and what they cost are held to what those left of the weights. Raises ``BuildError`` for a file that cannot
    be read back.
    """
    reader = target.read(variant, weights.decoder)
    shapes = dict(weights.decoder.tensors())
    tightest = _Tightest()
    sums: dict[str, Float64] = {}
    on_grids: dict[str, NDArray[np.int64]] = {}
    try:
        for name, start, stop in blocks(weights.decoder):
            form, root = reader.form(name), np.sqrt(importance[name]) if name in importance else None
            columns = math.prod(shapes[name][1:])
            block = _Block(stop - start, columns)
            weighed = block if root is None else _Block(stop - start, columns)
            grids = _Grids(form)
            for first, pair in _pairs(weights, reader, name, start, stop, columns):
                _hold_rows(tightest, reader, name, first, pair, name in feedback)
                if pair.is_matrix and form.group > 1:
                    grids.take(first, pair)
                block.take(first - start, pair)
                if root is not None:
                    weighed.take(first - start, _Pair(pair.expected * root, pair.actual * root))
                advance(pair.expected.size)
            if pair.is_matrix:
                meant = Meant(feedback[name]) if name in feedback else None
                cost = _hold_cost(tightest, reader, name, start, block, weighed, root, meant)
                _hold_scale(tightest, name, start, weighed, weights.decoder.head_multiple, cost)
                if form.group > 1:
                    on_grids[name] = on_grids.get(name, np.zeros(3, np.int64)) + grids.hold(tightest, name)
            sums[name] = sums.get(name, np.zeros(3)) + block.sums.sum(axis=1)
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
        self.error, self.power, self.dot = of_rows(self.expected, self.actual)


def _pairs(
    weights: Weights, reader: Reader, name: str, start: int, stop: int, columns: int
) -> Iterator[tuple[int, _Pair]]:
    """Yield the rows of a block in parts of whole heads, each with its first row."""
    for first, last in row_blocks((stop - start, columns), weights.decoder.head_multiple, PART):
        rows = name, start + first, start + last
        yield start + first, _Pair(weights.rows(*rows), reader.rows(*rows))


class _Block:
    """The three sums of each row of a block: float64 [3, n]; and of every so many rows what ``_Pair`` has of all."""

    def __init__(self, rows: int, columns: int) -> None:
        self.sums = np.zeros((3, rows))
        self.error, self.power, self.dot = self.sums
        self._every = max(1, min(SAMPLE, rows // FEW_ROWS))
        self.sample = slice(None, None, self._every)
        self.expected, self.actual = np.empty((2, -(-rows // self._every), columns), np.float32)

    def take(self, first: int, pair: _Pair) -> None:
        """Add rows from the block's row ``first`` on."""
        self.sums[:, first : first + len(pair.power)] = pair.error, pair.power, pair.dot
        sample, before = slice(-first % self._every, None, self._every), -(-first // self._every)
        for ours, theirs in ((self.expected, pair.expected[sample]), (self.actual, pair.actual[sample])):
            ours[before : before + len(theirs)] = theirs


class _Grids:
    """Which rows of a block lie on grids that their form can hold, and how much each has lost of what it may."""

    def __init__(self, form: Form) -> None:
        self._form = form
        self._count = self._zeros = self._others = 0
        self._on: list[NDArray[np.intp]] = []
        self._lost: list[Float64] = []

    def take(self, first: int, pair: _Pair) -> None:
        """Look at rows from the tensor's row ``first`` on."""
        from edgepack_packager.proof import exact

        on, lost = exact.held(self._form, pair.expected, pair.actual)
        self._on.append(first + on)
        self._lost.append(lost)
        count, zeros = len(pair.power), int(((pair.power == 0) & (pair.error == 0)).sum())
        self._count += count
        self._zeros += zeros
        # Where all rows lie on grids of the form, none of 4 bits is looked for: they count as if they lay on those too.
        rest = on.size + zeros < count
        self._others += len(exact.on_grids(exact.FOUR_BITS, pair.expected)) if rest else on.size

    def hold(self, tightest: _Tightest, name: str) -> NDArray[np.int64]:
        """Hold the rows to their grids.

        Returns how many hold theirs, how many lie on grids of 4 bits that the form does not hold, and all. A row of
        zeros counts with either.
        """
        on, lost = np.concatenate(self._on), np.concatenate(self._lost)
        if on.size:
            tightest.take("tensors.grid", lost, np.ones(len(lost)), lambda index: f"row {on[index]} of {name}")
        held = int((lost <= 1).sum())
        others = self._others if on.size + self._zeros < self._count else 0
        return np.array([held and held + self._zeros, others and others + self._zeros, self._count])


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


def _hold_rows(tightest: _Tightest, reader: Reader, name: str, start: int, pair: _Pair, fed: bool) -> None:
    """Hold each row's error to the worst that its scheme's arithmetic allows, both relative to the row.

    Where errors are made good, a row's own may be ``FARTHEST`` times as large, but never all of it.
    """
    norm = np.sqrt(pair.power)
    unit = np.where(norm > 0, norm, 1.0)
    bound = min(reader.bound(name) * FARTHEST, WHOLE) if fed else reader.bound(name)
    allowed = bound * norm + reader.floor(name)
    tightest.take(
        "tensors.row_error", np.sqrt(pair.error) / unit, allowed / unit, lambda row: f"row {start + row} of {name}"
    )


def _hold_cost(
    tightest: _Tightest,
    reader: Reader,
    name: str,
    start: int,
    block: _Block,
    weighed: _Block,
    root: Float32 | None,
    meant: Meant | None,
) -> tuple[float, float]:
    """Hold a block's error to what its scheme costs on a sample of its rows, and to that of the nearest levels.

    ``weighed`` is the block times ``root``, float32 [columns], where errors are weighed: which levels are nearest does
    not depend on that. Where errors are made good, they are those to what was ``meant``. Returns that cost as a share
    of the rows' power, and how far the scheme itself moves their scale from 1.
    """
    form = reader.form(name)
    rule = kept(form, block.expected)
    cost, power, dot = (float(each.sum()) for each in of_rows(weighed.expected, rule if root is None else rule * root))
    # Rows that lie on the scheme's levels may cost nothing, and a search by another criterion still a third of what
    # others cost: 2^-(b+1), half of which moves the scale. Of float32, two roundings.
    few = max(2.0 ** -(form.bits + 1), 2.0**-22)

    def least(of: _Block) -> float:
        return float(of.power[of.sample].sum() * few**2 + len(block.expected) * reader.floor(name) ** 2)

    goal = block.expected if meant is None else meant.of(form, block.expected, block.actual)

    def error(of: _Block) -> float:
        if meant is None:
            return float(of.error[of.sample].sum())
        times = np.float32(1) if of is block or root is None else root
        return float(of_rows(goal * times, of.actual)[0].sum())

    def hold(gate_name: str, of: _Block, least_error: float, limit: float) -> None:
        ratio = np.sqrt(_over(error(of), max(least_error, least(of))))
        place = _rows(name, start, start + len(block.power))
        tightest.take(gate_name, np.array([ratio]), np.array([limit]), lambda _: place)

    hold("tensors.cost", weighed, cost, COST)
    if form.bits <= FEW_BITS and form.kind not in TOGETHER:
        from edgepack_packager.proof import nearest

        hold("tensors.nearest", block, nearest.error(form, goal, block.actual), NEAREST)
    share = float(_over(cost, power))
    moved = abs(dot / power - 1) if power else 0.0
    return share, share + moved + (few / 2 if cost < least(weighed) else 0.0)


def _hold_scale(
    tightest: _Tightest, name: str, start: int, block: _Block, rows: int, cost: tuple[float, float]
) -> None:
    """Hold the scale of so many rows at a time to 1, but for what the scheme moves it by, and for chance.

    The nearest of a few levels leave as much of it out as their cost is of the power, which is more in a head whose
    weights suit the levels less than the others' do, up to twice; a grid that ends a step earlier on one side cuts what
    lies there; and errors of either sign add up.
    """
    share, moved = cost
    first = np.arange(0, len(block.power), rows)
    error, power, dot = np.add.reduceat(block.sums, first, axis=1)
    off = np.where(power > 0, np.abs(_over(dot, power) - 1), 0.0)
    more = np.clip(_over(error, power) - share, 0.0, share)
    allowed = SCALE + moved + more + 4 * np.sqrt(share / (rows * block.expected.shape[1]))
    last = start + len(block.power)
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
