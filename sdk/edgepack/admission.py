"""What every session checks of what it is asked before its engine is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
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


def admitted_steps(
    steps: Iterable[tuple[int, Sequence[int]]], *, n_vocab: int, lengths: Sequence[int], context: int, chunk: int
) -> list[list[int]]:
    """Return the tokens of steps that may be evaluated together, as (sequence, tokens), as ints of Python.

    ``lengths`` are the tokens that each sequence holds. Raises ``ValueError`` for no step, a sequence that there is
    not, two steps of one, and more than ``chunk`` tokens, and as ``admitted``.
    """
    found: list[list[int]] = []
    seen: set[int] = set()
    for sequence, tokens in steps:
        check_sequence(sequence, len(lengths))
        if sequence in seen:
            raise ValueError(f"there are two steps of sequence {sequence}")
        if len(tokens) > chunk:
            raise ValueError(f"a step of {len(tokens)} tokens is longer than a chunk of {chunk}")
        seen.add(sequence)
        found.append(admitted(tokens, n_vocab=n_vocab, length=lengths[sequence], context=context))
    if not found:
        raise ValueError("there is no step to evaluate")
    return found


def check_sequences(count: int, *, headless: bool) -> None:
    """Raise ``UsageError`` for a number of sequences that no session has, or a model without a head does not have."""
    if count < 1:
        raise UsageError(f"sequences is {count}, it must be at least 1.")
    if headless and count > 1:
        raise UsageError(
            f"sequences is {count}, and a model that embeds evaluates one text at a time.", hint="Leave sequences out."
        )


def check_sequence(sequence: int, count: int) -> None:
    """Raise ``ValueError`` where there is no such sequence among so many."""
    if not 0 <= sequence < count:
        raise ValueError(f"there is no sequence {sequence}: there are {count}, from 0 on")


def check_copy(source: int, target: int, length: int, lengths: Sequence[int]) -> None:
    """Raise ``ValueError`` unless both are sequences, two, and the source holds so many tokens."""
    check_sequence(source, len(lengths))
    check_sequence(target, len(lengths))
    if source == target:
        raise ValueError(f"sequence {source} cannot be copied to itself")
    if not 0 <= length <= lengths[source]:
        raise ValueError(f"cannot copy {length} tokens: sequence {source} holds {lengths[source]}")


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
