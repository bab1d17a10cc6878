"""What every session checks of what it is asked before its engine is."""

from __future__ import annotations

from collections.abc import Sequence
from operator import index

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import PromptTooLongError, UsageError

_INTS = {int}


def admitted(tokens: Sequence[int], *, n_vocab: int, length: int, context: int) -> list[int]:
    """Return tokens that may be appended to ``length`` others in the cache, as ints of Python.

    Raises ``ValueError`` for none, or one that is no integer from 0 to ``n_vocab`` - 1, ``PromptTooLongError`` where
    they do not fit the context. No array is made: a step of an answer comes when the weights have taken the
    processor's caches, and numpy's reductions over one token then cost 0.1 ms.
    """
    try:
        ids = list(tokens)
        kinds = set(map(type, ids))
        if bool in kinds:
            raise TypeError
        if kinds != _INTS:
            ids = [index(token) for token in ids]
    except TypeError:
        raise ValueError("a token id is not an integer") from None
    if not ids:
        raise ValueError("there is no token id to append")
    if min(ids) < 0 or max(ids) >= n_vocab:
        wrong = next(token for token in ids if not 0 <= token < n_vocab)
        raise ValueError(f"the token id {wrong} is outside the vocabulary of {n_vocab}")
    if length + len(ids) > context:
        raise PromptTooLongError(
            f"{len(ids)} tokens after the {length} in the cache exceed the context of {context}.",
            hint="Shorten the prompt, or load the model with a larger context.",
        )
    return ids


class WithoutHead:
    """What all sessions of a model without a head refuse alike: logits. See ``edgepack.runtime.Hidden``."""

    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Raise ``UsageError``."""
        raise UsageError("A model that embeds has no head, and gives no logits.", hint="Ask for hidden.")

    def forward_all(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Raise ``UsageError``."""
        return self.forward(tokens)


def check_first(first: int, count: int) -> None:
    """Raise ``ValueError`` where ``first`` is no index into so many tokens."""
    if not 0 <= first < count:
        raise ValueError(f"states from index {first} on were asked for, and there are {count} tokens")
