"""Logprobs: how likely a model finds the tokens of a text. It knows numbers and ids; pieces of text come by a callable.

A logprob is the natural logarithm of a token's probability in the model's own distribution: the softmax of the logits
as the engine returned them, before temperature, penalties and masks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.decoding.sample import top_indices


@dataclass(frozen=True, slots=True)
class Alternative:
    """A token that could have stood in a place. ``token_id`` is None where a server does not tell it."""

    token_id: int | None
    text: str
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """A token and the likeliest ones in its place: ``best`` has the largest first and the lowest id first among equals.

    The token itself is among ``best`` only where it is that likely. ``token_id`` is None where a server does not tell
    it.
    """

    token_id: int | None
    text: str
    logprob: float
    best: tuple[Alternative, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self) | {"best": [asdict(each) for each in self.best]}


def token_logprob(logits: NDArray[np.float32], token: int, n_best: int, text_of: Callable[[int], str]) -> TokenLogprob:
    """Return the logprob of a token under logits, float32 [n_vocab], with its ``n_best`` alternatives.

    ``text_of`` gives the text of an id.
    """
    likeliest = _likeliest(logits, n_best)
    value, *values = logprobs(logits, [token, *likeliest])
    best = tuple(Alternative(each, text_of(each), held) for each, held in zip(likeliest, values, strict=True))
    return TokenLogprob(token, text_of(token), value, best)


def logprobs(logits: NDArray[np.float32], ids: Sequence[int]) -> list[float]:
    """Return the logprobs of some tokens under logits, float32 [n_vocab], whose largest is finite.

    Exponentials are in float32, their sum is in float64.
    """
    largest = logits.max()
    with np.errstate(over="ignore"):  # masks are often written as the lowest float32
        weights = logits - largest
    total = float(np.log(np.exp(weights, out=weights).sum(dtype=np.float64)))
    return [float(logits[each]) - float(largest) - total for each in ids]


def _likeliest(logits: NDArray[np.float32], count: int) -> list[int]:
    """Return the first ids in the order (-logit, id)."""
    if count == 0:
        return []
    ids = top_indices(logits, max(count, 20))  # to search for fewer takes longer
    found: list[int] = ids[np.argsort(-logits[ids], kind="stable")][:count].tolist()
    return found
