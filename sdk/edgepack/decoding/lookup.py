"""Prompt lookup: guess the next tokens from what was said before, so that the engine checks several in one step.

Where the last tokens of a text appeared earlier, what followed them then is likely to follow now: code, quotations,
corrections, JSON (A. Saxena, "Prompt Lookup Decoding", 2023). A guess never changes the text: each token is still
chosen by the sampler from the engine's own logits, and the first that differs ends the guess. It knows ids only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

NGRAM = 3
"""Tokens that must have appeared before. Two guess too often wrongly, four find too little."""

PAYS = 2.5
"""How many steps of one token a step of four may cost for guessing to be on by itself: what it brings where half of
its three guesses come true."""

STEPS = (2, 4, 7, 16, 32)
"""Tokens of one step, of which all but the first are guessed. On x86-64 llama.cpp computes K-quants token by token up
to 7, and from 8 on in tiles of 16: 8 take as long as 16, and 17 as long as 32, half of the time of 32 single ones."""

_FIRST = STEPS.index(4)


class Lookup:
    """The places of each n-gram of a growing text, and how far it is worth guessing."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self._pace = _FIRST  # an index into STEPS
        for token in prompt:
            self.append(token)

    def append(self, token: int) -> None:
        """Add a token to the text. Constant time."""
        if len(self._ids) >= NGRAM:
            self._next[tuple(self._ids[-NGRAM:])] = len(self._ids)
        self._ids.append(token)

    def guess(self, most: int) -> list[int]:
        """Return tokens that may come next, at most ``most``: what followed the last n-gram when it last appeared."""
        start = self._next.get(tuple(self._ids[-NGRAM:]))
        return [] if start is None else self._ids[start : start + min(STEPS[self._pace] - 1, most)]

    def learn(self, guessed: int, right: int) -> None:
        """Guess farther after a guess that was right to its end, after another only as far as that one was right."""
        if right == guessed:
            self._pace = min(self._pace + 1, len(STEPS) - 1)
        else:
            self._pace = max(0, bisect_right(STEPS, right + 1) - 1)
