"""What a whole choice of forms loses, measured once: the divergence on a text that had no part in it.

What a choice is told to lose is a sum over its matrices (``sensitivity``). Where many of them are far from exact that
sum is wrong, for some choices by more than for others: so each is held to a scheme in its bytes before it is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.resources import files
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import calibration, reference
from edgepack_packager.allocation.sensitivity import Rounded, states
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets import Forms, Model, Target

Float64 = NDArray[np.float64]

WINDOW: Final = 256
"""Tokens that see each other; the context, where that is shorter."""

WINDOWS: Final = 4
"""Of a model that is not ``LARGE``; of one that is half as many: of 1.2 B parameters each takes 16 CPU seconds."""

LARGE: Final = 500_000_000
"""Parameters."""


def texts(told: Sequence[int], tokenizer: Tokenizer, decoder: Decoder) -> list[Sequence[int]]:
    """Return windows of token ids that no calibration sees, as many in each.

    They are of the text that calibrates, whose ids are ``told``, where it leaves enough, else of a built-in one.
    """
    size, count = min(WINDOW, decoder.context), WINDOWS // 2 if decoder.n_parameters >= LARGE else WINDOWS
    found = _cut(calibration.left(told, decoder.context), size)
    if len(found) < count:
        found = _cut([tokenizer.encode(built_in(), bos=False)], size)
    count = min(count, len(found))
    return [found[index * len(found) // count] for index in range(count)]


def built_in() -> str:
    """Return the text that judges where the calibration's leaves nothing."""
    return files(__package__).joinpath("judging.txt").read_text("utf-8")


def _cut(windows: Sequence[Sequence[int]], size: int) -> list[Sequence[int]]:
    return [each[start : start + size] for each in windows for start in range(0, len(each) - size + 1, size)]


class Judge:
    """The predictions of a model's weights after each id of some texts, to which rounded ones are held.

    Memory: what ``reference.observe`` takes of so many ids, and their states.
    """

    def __init__(self, weights: Weights, model: Model, texts: Sequence[Sequence[int]]) -> None:
        self._weights, self._model, self._texts = weights, model, texts
        self._exact = np.concatenate(states(weights, texts))

    def divergences(self, target: Target, forms: Forms) -> Float64:
        """Return KL(weights || weights in these forms) after each id: float64 [n], nats.

        Matrices without a form stay as they are, and so do the inputs of products, which some engines round.
        """

        def rounded(name: str, rows: Float32) -> Float32:
            return target.rounded(self._model, name, rows, forms[name]) if name in forms else rows

        weights = Rounded(self._weights, rounded)
        found = np.concatenate(states(weights, self._texts))
        return divergences(self._weights, self._exact, weights, found)


def divergences(weights: Weights, states: Float32, others: Weights, their_states: Float32) -> Float64:
    """Return KL(p || q) of what two models predict after their states, float32 [n, h] each: float64 [n], nats.

    Both heads are read once, some tokens of the vocabulary at a time: with a = sum exp(p), b = sum exp(q) over logits p
    and q, KL is sum exp(p) (p - q) / a - log a + log b, and the sums are kept relative to the largest logit so far.
    """
    n = len(states)
    top, their_top = np.full(n, -np.inf), np.full(n, -np.inf)
    total, their_total, apart = np.zeros(n), np.zeros(n), np.zeros(n)
    both = zip(reference.columns(weights, states[None]), reference.columns(others, their_states[None]), strict=True)
    for (_, (p,)), (_, (q,)) in both:
        higher, their_higher = np.maximum(top, p.max(axis=1)), np.maximum(their_top, q.max(axis=1))
        kept, their_kept = np.exp(top - higher), np.exp(their_top - their_higher)
        shares = np.exp(p - higher[:, None].astype(np.float32))
        total = total * kept + shares.sum(axis=1, dtype=np.float64)
        apart = apart * kept + (shares * (p - q)).sum(axis=1, dtype=np.float64)
        theirs = np.exp(q - their_higher[:, None].astype(np.float32))
        their_total = their_total * their_kept + theirs.sum(axis=1, dtype=np.float64)
        top, their_top = higher, their_higher
    found: Float64 = apart / total - (top + np.log(total)) + (their_top + np.log(their_total))
    return found
