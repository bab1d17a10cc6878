"""How a loss is shown: each figure with its standard error, and no ratio of perplexities called a gain."""

from __future__ import annotations

import math
from collections.abc import Iterable

COLUMNS = ("KL (nats)", "top-1 agrees", "perplexity")

Figure = tuple[float, float]
"""A mean and its standard error."""


def shown(figure: Figure, unit: str = "") -> str:
    """Return a figure with two digits of its error: "16.75 ± 0.35"."""
    value, error = figure
    if not (math.isfinite(value) and math.isfinite(error)) or 0 < error < 1e-5:
        return f"{value:.3g}{unit} ± {error:.2g}{unit}"
    if not error:
        return f"{value:.4g}{unit} ± 0{unit}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{digits}f}{unit} ± {error:.{digits}f}{unit}"


def cells(kl: Figure, top1: Figure, ratio: Figure) -> tuple[str, str, str]:
    """Return what stands under ``COLUMNS``: KL in nats, a share of equal likeliest tokens, a ratio of perplexities."""
    return shown(kl), shown((100 * top1[0], 100 * top1[1]), "%"), f"x {shown(ratio)}"


def remark(ratios: Iterable[float]) -> str:
    """Return what to say under a table with these ratios; nothing where none could be taken for a gain."""
    some = any(ratio < 1 for ratio in ratios)
    return "A perplexity of less than x 1 is luck with the text, no gain: what was lost is the KL." if some else ""
