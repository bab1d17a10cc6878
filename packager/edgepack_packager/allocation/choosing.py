"""The least loss for a budget of bytes, where each of many slots has a few ways to spend some.

It knows bytes and losses, and nothing of tensors, formats and models. The losses of slots add up, as they do while each
is small; then steps along the lower convex hull of each slot, taken in the order of what a byte buys, are the best that
any choice of their bytes can be (H. Everett, Operations Research 11(3), 1963). What such steps leave of a budget is
filled with whatever still fits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, product


@dataclass(frozen=True, slots=True)
class Option:
    """A way to store a slot: its form's name, its bytes, and what it loses."""

    form: str
    size: int
    loss: float


@dataclass(frozen=True, slots=True)
class _Step:
    """From what a slot has to a larger option: the loss that each byte of it saves, and which slot."""

    worth: float
    slot: int
    option: Option


LARGE = 0.05
"""The part of a budget that a slot's options span, from which on it is not left to steps: as the embedding of a small
model, whose next step may be more than what is left, where a few of the others had better give theirs up for it."""

_TRIED = 2
"""Such slots, at most: an embedding and a head."""


def choose(slots: Sequence[Sequence[Option]], budget: int) -> list[Option]:
    """Return an option for each slot, of at most ``budget`` bytes together. The same arguments give the same options.

    All options of the two largest slots are tried, where they are ``LARGE``. For each, the loss of the others exceeds
    the least possible by less than one step of one slot, and by nothing where the budget ends with a step. Raises
    ``ValueError`` where not even the smallest options fit.
    """
    hulls = [_hull(options) for options in slots]
    left = budget - sum(hull[0].size for hull in hulls)
    if left < 0:
        raise ValueError(f"{budget} bytes are {-left} less than the smallest options take")
    large = _largest(hulls, budget)
    ways = product(*(hulls[slot] for slot in large))
    tried = (_in_steps(slots, _fixed(hulls, dict(zip(large, way, strict=True))), budget) for way in ways)
    return min((each for each in tried if each), key=lambda chosen: sum(option.loss for option in chosen))


def _largest(hulls: Sequence[list[Option]], budget: int) -> list[int]:
    """Return the ``LARGE`` slots, the largest first, of which there are ``_TRIED`` at most."""
    spans = {slot: hull[-1].size - hull[0].size for slot, hull in enumerate(hulls)}
    return sorted((slot for slot in spans if spans[slot] > LARGE * budget), key=lambda slot: -spans[slot])[:_TRIED]


def _fixed(hulls: Sequence[list[Option]], chosen: Mapping[int, Option]) -> list[list[Option]]:
    return [[chosen[slot]] if slot in chosen else hull for slot, hull in enumerate(hulls)]


def _in_steps(slots: Sequence[Sequence[Option]], hulls: Sequence[list[Option]], budget: int) -> list[Option]:
    """Return the options that the best steps along the hulls lead to; none where the first do not fit."""
    chosen = [hull[0] for hull in hulls]
    left = budget - sum(option.size for option in chosen)
    if left < 0:
        return []
    steps = [step for slot, hull in enumerate(hulls) for step in _steps(slot, hull)]
    # Along a hull each step is worth less than the one before, so that a slot's steps stay in their order.
    for step in sorted(steps, key=lambda one: (-one.worth, one.slot, one.option.size)):
        more = step.option.size - chosen[step.slot].size
        if more > left:
            break
        chosen[step.slot], left = step.option, left - more
    _fill(slots, chosen, left)
    return chosen


def _hull(options: Sequence[Option]) -> list[Option]:
    """Return the lower convex hull of a slot's options: fewest bytes first, each of less loss than the one before."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda one: (one.size, one.loss, one.form)):
        if hull and option.loss >= hull[-1].loss:
            continue
        while len(hull) > 1 and _worth(hull[-2], hull[-1]) <= _worth(hull[-1], option):
            hull.pop()
        hull.append(option)
    return hull


def _steps(slot: int, hull: Sequence[Option]) -> Iterator[_Step]:
    for one, other in pairwise(hull):
        yield _Step(_worth(one, other), slot, other)


def _worth(one: Option, other: Option) -> float:
    """Return what each byte more saves; of one that loses less in no more bytes, without end."""
    more = other.size - one.size
    return (one.loss - other.loss) / more if more > 0 else float("inf")


def _fill(slots: Sequence[Sequence[Option]], chosen: list[Option], left: int) -> None:
    """Spend what is left, in place, on the exchange that saves most of those that fit, until none saves anything."""
    while True:
        exchanges = [
            (chosen[slot].loss - option.loss, slot, option)
            for slot, options in enumerate(slots)
            for option in options
            if option.size - chosen[slot].size <= left and option.loss < chosen[slot].loss
        ]
        if not exchanges:
            return
        _, slot, option = max(exchanges, key=lambda one: (one[0], -one[1], -one[2].size))
        left -= option.size - chosen[slot].size
        chosen[slot] = option
