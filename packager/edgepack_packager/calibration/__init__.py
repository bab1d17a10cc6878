"""Calibration: what an error in each column of a matrix counts, from what a text multiplies it with.

The loss that quantisation causes in a product is, to the second order, the sum over the columns of the squared error of
the weight times the mean square of the input: writers that search for scales weigh their errors by that. What decides
bytes is computed by ``arithmetic.repeatable``: the same text gives the same numbers on every host.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.manifest import Chat
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import reference
from edgepack_packager.calibration import text
from edgepack_packager.calibration.messages import Teller
from edgepack_packager.calibration.text import Corpus
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.text.side import Text

_WINDOW: Final = 512
"""Tokens that see each other, in a context of their own."""

_WINDOWS: Final = 8
_TOGETHER: Final = 4
"""Windows that pass a layer at a time: of a model of 1.2 B parameters they take some 500 MB."""

_LEAST: Final = np.float32(2.0**-10)
"""Of a matrix's mean, what a column counts at least: another text may use what this one leaves still."""


def told(corpus: Corpus, tokenizer: Tokenizer, side: Text, chat: Chat | None) -> list[int]:
    """Return a text's token ids: of conversations, what the model is told.

    ``side`` and ``chat`` are the model's, by whose template they are told. Raises as ``messages.Teller``.
    """
    said = corpus.conversations
    return Teller(side, chat, tokenizer).ids(said) if said else tokenizer.encode(corpus.text, bos=False)


def passes(corpus: Corpus, ids: Sequence[int], context: int) -> list[list[Sequence[int]]]:
    """Return the windows of a text, whose ids are ``told``, by the passes over the weights that they take.

    Raises as ``text.windows``.
    """
    windows = text.windows(corpus, ids, min(_WINDOW, context), _WINDOWS)
    return [windows[start : start + _TOGETHER] for start in range(0, len(windows), _TOGETHER)]


def left(ids: Sequence[int], context: int) -> list[Sequence[int]]:
    """Return the windows of a text, whose ids are ``told``, that ``passes`` leaves out."""
    return text.others(ids, min(_WINDOW, context), _WINDOWS)


def size(context: int) -> int:
    """Return the tokens that a calibration reads of a text that has as many."""
    return min(_WINDOW, context) * _WINDOWS


def importance(
    weights: Weights,
    passes: Sequence[Sequence[Sequence[int]]],
    progress: Callable[[], None] | None = None,
    also: Callable[[str, Float32], None] = lambda name, inputs: None,
) -> dict[str, Float32]:
    """Return what columns count, by canonical name of each matrix: float32 [columns], their share of the mean.

    It is the mean square of their inputs over all ids, to the 8 bits of a bfloat16. A tied embedding has that of the
    head, one of its own none. ``passes`` are texts by how many pass a layer at a time. ``progress`` is called after
    each layer of each pass, and ``also`` sees the inputs as in ``reference.observe``. Raises as ``reference.hidden``.
    """
    from edgepack_packager.arithmetic.repeatable import REPEATABLE

    sums: dict[str, NDArray[np.float64]] = {}

    def see(name: str, inputs: Float32) -> None:
        sums[name] = sums.get(name, np.float64(0)) + REPEATABLE.squares(inputs)
        also(name, inputs)

    texts = [window for some in passes for window in some]
    reference.observe(weights, texts, see, progress, REPEATABLE, together=len(passes[0]))
    return {name: _shares(total) for name, total in sums.items()}


def digest(importance: Mapping[str, Float32]) -> str:
    """Return the sha256, in hexadecimal, of the names and what their columns count, as little-endian float32."""
    found = hashlib.sha256()
    for name in sorted(importance):
        found.update(f"{name} {len(importance[name])}\n".encode() + importance[name].astype("<f4").tobytes())
    return found.hexdigest()


def _shares(squares: NDArray[np.float64]) -> Float32:
    mean = math.fsum(squares) / len(squares)
    if not mean > 0:
        return np.ones(len(squares), np.float32)
    shares = np.maximum((squares / mean).astype(np.float32), _LEAST)
    rounded: Float32 = ((shares.view(np.uint32) + np.uint32(0x8000)) & np.uint32(0xFFFF0000)).view(np.float32)
    return rounded
