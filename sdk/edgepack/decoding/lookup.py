"""Prompt lookup: guess the next tokens from what was said before, so that the engine checks several in one step.

Where the last tokens of a text appeared earlier, what followed them then is likely to follow now: code, quotations,
corrections, JSON (A. Saxena, "Prompt Lookup Decoding", 2023). A guess never changes the text: each token is still
chosen by the sampler from the engine's own logits, and the first that differs ends the guess. It knows ids only.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.decoding.pace import Pace

NGRAM = 3
"""Tokens that must have appeared before. Two guess too often wrongly, four find too little."""

PAYS = 2.5
"""How many steps of one token a step of four may cost for guessing to be on by itself: what it brings where half of
its three guesses come true."""


class Lookup:
    """The places of each n-gram of a growing text, and how far it is worth guessing."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self._ids: list[int] = []
        self._next: dict[tuple[int, ...], int] = {}
        self.pace = Pace()
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
        return [] if start is None else self._ids[start : start + min(self.pace.most, most)]
