"""The picture of ``fidelity.py``: a mark for each family and tool on a logarithmic scale, as an SVG of plain shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log10

LEFT, TOP, DECADE, LANE = 130, 80, 44, 10
FIRST, LAST = -13, 0
WIDTH = LEFT + DECADE * (LAST - FIRST) + 30
# One colour and lane for a format; edgepack is a disc, the peer of the format a ring around it where both are alike.
COLOURS = {"gguf": "#0072b2", "onnx": "#d55e00", "mlx": "#009e73"}
FORMATS = {"llama.cpp": "gguf", "genai": "onnx", "mlx-lm": "mlx"}

Rows = Sequence[tuple[str, Sequence[float | None]]]


def draw(rows: Rows, tools: Sequence[str], limit: float) -> str:
    """Return the picture. A row is a title and a value for each tool, None for no mark; ``limit`` is a dashed line."""
    lanes = list(dict.fromkeys(_format(tool) for tool in tools))
    height = LANE * (len(lanes) + 1)
    bottom = TOP + height * len(rows)
    shapes = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{bottom + 30}" font-family="sans-serif" '
        'font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
        *_legend(tools),
        *_axis(bottom),
        f'<path d="M{_x(limit):.1f} {TOP}V{bottom}" stroke="#c00" stroke-dasharray="4 3"/>',
    ]
    for number, (title, values) in enumerate(rows):
        top = TOP + height * number
        shapes.append(f'<text x="{LEFT - 10}" y="{top + height / 2 + 4:.1f}" text-anchor="end">{title}</text>')
        shapes.append(f'<path d="M{LEFT} {top + height}H{WIDTH - 30}" stroke="#ccc"/>')
        for tool, value in zip(tools, values, strict=True):
            if value is not None:
                shapes.append(_dot(tool, _x(value), top + LANE * (lanes.index(_format(tool)) + 1)))
    return "\n".join([*shapes, "</svg>", ""])


def _format(tool: str) -> str:
    return FORMATS.get(tool) or tool.split()[-1]


def _x(value: float) -> float:
    return LEFT + DECADE * (min(max(log10(max(value, 1e-99)), FIRST), LAST) - FIRST)


def _dot(tool: str, x: float, y: float) -> str:
    colour = COLOURS[_format(tool)]
    shape = 'r="4.5" fill="none"' if tool in FORMATS else f'r="2.5" fill="{colour}"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" {shape} stroke="{colour}" stroke-width="1.2"/>'


def _legend(tools: Sequence[str]) -> Iterator[str]:
    for number, tool in enumerate(tools):
        x = 20 + number * (WIDTH - 20) / len(tools)
        yield _dot(tool, x, 18)
        yield f'<text x="{x + 9:.1f}" y="22">{tool}</text>'


def _axis(bottom: int) -> Iterator[str]:
    title = "worst structural NMSE: wrong right of the dashed line; no mark where a tool refused or failed"
    yield f'<text x="{LEFT}" y="{TOP - 32}">{title}</text>'
    for power in range(FIRST, LAST + 1):
        x = LEFT + DECADE * (power - FIRST)
        yield f'<path d="M{x} {TOP}V{bottom}" stroke="#eee"/>'
        for y in (TOP - 8, bottom + 18):
            yield f'<text x="{x}" y="{y}" text-anchor="middle" font-size="10">1e{power}</text>'
