"""Measurements as a picture: bars with their spread in panels of one unit each, an SVG of plain shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from math import floor, isfinite, log10
from typing import Final

_WIDTH: Final = 640
_LEFT: Final = 190
_RIGHT: Final = 110
_LINE: Final = 26
_PLOT: Final = _WIDTH - _LEFT - _RIGHT


@dataclass(frozen=True, slots=True)
class Bar:
    """A figure of at least 0 and what it may be off by, 0 where nothing is known of that."""

    label: str
    value: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Panel:
    """Bars that share a unit, and so an axis from 0 on; ``title`` names it."""

    title: str
    bars: Sequence[Bar]


def draw(title: str, panels: Sequence[Panel]) -> str:
    """Return the picture. A bar whose value is not finite is named, and has no length."""
    shapes: list[str] = []
    top = 2.0 * _LINE
    for panel in panels:
        shapes += _panel(panel, top)
        top += (len(panel.bars) + 2) * _LINE
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top:.0f}" '
            f'viewBox="0 0 {_WIDTH} {top:.0f}" font-family="sans-serif" font-size="13">',
            '<rect width="100%" height="100%" fill="white"/>',
            f'<text x="16" y="{_LINE}" font-weight="bold">{escape(title)}</text>',
            *shapes,
            "</svg>",
            "",
        ]
    )


def _panel(panel: Panel, top: float) -> Iterator[str]:
    yield f'<text x="{_LEFT}" y="{top + 14:.0f}" fill="#555">{escape(panel.title)}</text>'
    most = max((bar.value + bar.spread for bar in panel.bars if isfinite(bar.value)), default=0.0)
    for number, bar in enumerate(panel.bars, start=1):
        middle = top + number * _LINE + 8
        yield f'<text x="{_LEFT - 10}" y="{middle + 4:.0f}" text-anchor="end">{escape(bar.label)}</text>'
        known = isfinite(bar.value) and most > 0
        length, half = (_PLOT * each / most if known else 0.0 for each in (bar.value, bar.spread))
        yield f'<rect x="{_LEFT}" y="{middle - 8:.0f}" width="{length:.1f}" height="16" fill="#0072b2"/>'
        if known and bar.spread:
            low, high = _LEFT + max(0.0, length - half), _LEFT + length + half
            yield f'<path d="M{low:.1f} {middle:.0f}H{high:.1f}" stroke="#d55e00" stroke-width="3"/>'
        end = _LEFT + length + half + 8
        yield f'<text x="{end:.1f}" y="{middle + 4:.0f}">{_figure(bar)}</text>'


def _figure(bar: Bar) -> str:
    if not isfinite(bar.value):
        return f"{bar.value}"
    smallest = bar.spread or bar.value
    digits = 0 if smallest <= 0 else max(0, (1 if bar.spread else 2) - floor(log10(smallest)))
    return f"{bar.value:.{digits}f}" + (f" ± {bar.spread:.{digits}f}" if bar.spread else "")
