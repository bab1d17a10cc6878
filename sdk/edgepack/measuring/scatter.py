"""Loss against size as a picture: a point for each payload, on a logarithmic axis of what is lost. An SVG of plain
shapes, the same bytes for the same figures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10
from typing import Final

_LEFT, _TOP, _BOTTOM = 70, 60, 60
_PLOT: Final = 480
_HEIGHT: Final = 420
_LINE: Final = 18
_BESIDE: Final = _LEFT + _PLOT + 24
_LETTER: Final = 8
"""Pixels of a character, at most nearly all; labels end where the picture does."""
_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by people who see few colours too (Okabe and Ito)."""
_SMALLEST: Final = 1e-9


@dataclass(frozen=True, slots=True)
class Point:
    """A payload: what it is called and belongs to, its size, and what it lost with the standard error of that.

    ``hollow`` marks what is there for comparison alone.
    """

    label: str
    group: str
    size: float
    loss: float
    error: float = 0.0
    hollow: bool = False


def draw(title: str, sizes: str, losses: str, points: Sequence[Point]) -> str:
    """Return the picture of at least one point, with the names of both axes.

    Labels stand in a column beside the plot, in the order of the losses, each with a line to its point: none can lie on
    another. A loss of nothing is drawn on the lowest line.
    """
    height = max(_HEIGHT, len(points) * _LINE + 20)
    plot = _Plot(points, height)
    groups = list(dict.fromkeys(point.group for point in points))
    colours = {group: _COLOURS[number % len(_COLOURS)] for number, group in enumerate(groups)}
    total = _TOP + height + _BOTTOM
    width = max(_BESIDE + _LETTER * max(len(point.label) for point in points), _LETTER * len(title)) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{total}" '
            f'viewBox="0 0 {width} {total}" font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="16" y="26" font-weight="bold">{escape(title)}</text>',
            f'<text x="{_LEFT}" y="{_TOP - 10}" fill="#555">{escape(losses)}</text>',
            f'<text x="{_LEFT + _PLOT / 2:.0f}" y="{_TOP + height + 44}" text-anchor="middle" fill="#555">'
            f"{escape(sizes)}</text>",
            *plot.axes(),
            *plot.marks(colours),
            "</svg>",
            "",
        ]
    )


class _Plot:
    """Where things are: pixels from the left and from the top."""

    def __init__(self, points: Sequence[Point], height: int) -> None:
        self.points, self.height = points, height
        shown = [max(point.loss, _SMALLEST) for point in points]
        self.low, self.high = floor(log10(min(shown))), ceil(log10(max(shown)))
        self.high += self.low == self.high
        self.step = _step(max(point.size for point in points))
        self.most = self.step * (floor(max(point.size for point in points) / self.step) + 1)

    def x(self, size: float) -> float:
        return _LEFT + _PLOT * size / self.most

    def y(self, loss: float) -> float:
        share = (log10(max(loss, 10.0**self.low)) - self.low) / (self.high - self.low)
        return _TOP + self.height * (1 - min(1.0, share))

    def axes(self) -> Iterator[str]:
        bottom = _TOP + self.height
        for power in range(self.low, self.high + 1):
            at = self.y(10.0**power)
            yield f'<path d="M{_LEFT} {at:.1f}H{_LEFT + _PLOT}" stroke="#ddd"/>'
            yield f'<text x="{_LEFT - 8}" y="{at + 4:.1f}" text-anchor="end">{10.0**power:g}</text>'
        for number in range(round(self.most / self.step) + 1):
            at = self.x(number * self.step)
            yield f'<path d="M{at:.1f} {bottom}v5" stroke="#555"/>'
            yield f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle">{number * self.step:g}</text>'
        yield f'<path d="M{_LEFT} {_TOP}V{bottom}H{_LEFT + _PLOT}" fill="none" stroke="#555"/>'

    def marks(self, colours: dict[str, str]) -> Iterator[str]:
        order = sorted(self.points, key=lambda point: (-point.loss, point.size, point.label))
        labels = _spread([self.y(point.loss) for point in order], _TOP, _TOP + self.height)
        for point, label in zip(order, labels, strict=True):
            x, y, colour = self.x(point.size), self.y(point.loss), colours[point.group]
            yield f'<path d="M{x:.1f} {y:.1f}L{_BESIDE - 4} {label:.1f}" stroke="{colour}" stroke-opacity="0.25"/>'
            if point.error:
                low, high = self.y(point.loss - point.error), self.y(point.loss + point.error)
                yield f'<path d="M{x:.1f} {low:.1f}V{high:.1f}" stroke="{colour}" stroke-width="2"/>'
            fill = "white" if point.hollow else colour
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'
            yield f'<text x="{_BESIDE}" y="{label + 4:.1f}" fill="{colour}">{escape(point.label)}</text>'


def _spread(wanted: Sequence[float], top: float, bottom: float) -> list[float]:
    """Return ascending places at least a line apart, between top and bottom, as near as that to ascending others."""
    places: list[float] = []
    for place in wanted:
        places.append(max(place, places[-1] + _LINE if places else top))
    limit = bottom
    for index in reversed(range(len(places))):
        places[index] = min(places[index], limit)
        limit = places[index] - _LINE
    return places


def _step(most: float) -> float:
    """Return a round step of which some four to eight make the whole."""
    rough = max(most, 1e-6) / 5
    power = 10.0 ** floor(log10(rough))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
