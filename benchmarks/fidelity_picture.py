"""The picture of ``fidelity.py``: a dot for each family and tool on a logarithmic scale, as an SVG of plain shapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log10

LEFT, TOP, DECADE, LANE = 130, 64, 44, 9
FIRST, LAST = -13, 0
WIDTH = LEFT + DECADE * (LAST - FIRST) + 30
# One colour for a format; edgepack is a disc, the peer of the format a ring.
COLOURS = {"gguf": "#0072b2", "onnx": "#d55e00", "mlx": "#009e73"}
FORMATS = {"llama.cpp": "gguf", "genai": "onnx", "mlx-lm": "mlx"}

Rows = Sequence[tuple[str, Sequence[float | None]]]


def draw(rows: Rows, tools: Sequence[str], limit: float) -> str:
    """Return the picture. A row is a title and a value for each tool, None for no dot; ``limit`` is a dashed line."""
    height = LANE * (len(tools) + 1)
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
        for lane, (tool, value) in enumerate(zip(tools, values, strict=True), start=1):
            if value is not None:
                shapes.append(_dot(tool, _x(value), top + lane * LANE))
    return "\n".join([*shapes, "</svg>", ""])


def _x(value: float) -> float:
    return LEFT + DECADE * (min(max(log10(max(value, 1e-99)), FIRST), LAST) - FIRST)


def _dot(tool: str, x: float, y: float) -> str:
    colour = COLOURS[FORMATS.get(tool) or tool.split()[-1]]
    fill = "white" if tool in FORMATS else colour
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{fill}" stroke="{colour}" stroke-width="1.5"/>'


def _legend(tools: Sequence[str]) -> Iterator[str]:
    for number, tool in enumerate(tools):
        x = 20 + number * (WIDTH - 20) / len(tools)
        yield _dot(tool, x, 18)
        yield f'<text x="{x + 9:.1f}" y="22">{tool}</text>'


def _axis(bottom: int) -> Iterator[str]:
    title = "worst structural NMSE: wrong right of the dashed line; no dot where a tool refused or failed"
    yield f'<text x="{LEFT}" y="{TOP - 22}">{title}</text>'
    for power in range(FIRST, LAST + 1):
        x = LEFT + DECADE * (power - FIRST)
        yield f'<path d="M{x} {TOP}V{bottom}" stroke="#eee"/>'
        yield f'<text x="{x}" y="{bottom + 18}" text-anchor="middle" font-size="10">1e{power}</text>'
