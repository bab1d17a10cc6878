"""Calibration: what an error in each column of a matrix counts, from what a text multiplies it with.

The loss that quantisation causes in a product is, to the second order, the sum over the columns of the squared error of
the weight times the mean square of the input: writers that search for scales weigh their errors by that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import reference
from edgepack_packager.calibration import text
from edgepack_packager.calibration.text import Corpus
from edgepack_packager.checkpoint.weights import Float32, Weights

_WINDOW: Final = 512
"""Tokens that see each other, in a context of their own."""

_WINDOWS: Final = 8
_TOGETHER: Final = 4
"""Windows that take one pass over the weights: of a model of 1.2 B parameters they take some 500 MB."""

_LEAST: Final = np.float32(2.0**-10)
"""Of a matrix's mean, what a column counts at least: another text may use what this one leaves still."""


def passes(corpus: Corpus, tokenizer: Tokenizer, context: int) -> list[list[Sequence[int]]]:
    """Return a text's windows by the passes over the weights that they take. Raises as ``text.windows``."""
    windows = text.windows(corpus, tokenizer, min(_WINDOW, context), _WINDOWS)
    return [windows[start : start + _TOGETHER] for start in range(0, len(windows), _TOGETHER)]


def importance(
    weights: Weights, passes: Sequence[Sequence[Sequence[int]]], progress: Callable[[], None] | None = None
) -> dict[str, Float32]:
    """Return what columns count, by canonical name of each matrix: float32 [columns], their share of the mean.

    It is the mean square of their inputs over all ids, to the 8 bits of a bfloat16. A tied embedding has that of the
    head, one of its own none. ``progress`` is called after each layer of each pass. Raises as ``reference.hidden``.
    """
    sums: dict[str, Float32] = {}

    def see(name: str, inputs: Float32) -> None:
        sums[name] = sums.get(name, np.float32(0)) + np.einsum("nc,nc->c", inputs, inputs)

    for texts in passes:
        reference.observe(weights, texts, see, progress)
    return {name: _shares(total) for name, total in sums.items()}


def _shares(squares: Float32) -> Float32:
    mean = np.float32(squares.mean(dtype=np.float64))
    if not mean > 0:
        return np.ones_like(squares)
    shares = np.maximum(squares / mean, _LEAST)
    rounded: Float32 = ((shares.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
