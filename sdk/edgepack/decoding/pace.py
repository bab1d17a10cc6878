"""How far it is worth guessing ahead: a ladder of lengths, up after a guess that came true to its end, down after
another."""

from __future__ import annotations

from bisect import bisect_right

STEPS = (2, 4, 7, 16, 32)
"""Tokens of one step, of which all but the first are guessed. On x86-64 llama.cpp computes K-quants token by token up
to 7, and from 8 on in tiles of 16: 8 take as long as 16, and 17 as long as 32, half of the time of 32 single ones."""

_FIRST = STEPS.index(4)


class Pace:
    """How many tokens to guess, for one source of guesses and one text."""

    def __init__(self) -> None:
        self._step = _FIRST  # an index into STEPS

    @property
    def most(self) -> int:
        """How many tokens to guess next."""
        return STEPS[self._step] - 1

    def learn(self, guessed: int, right: int) -> None:
        """Guess farther after a guess that was right to its end, after another only as far as that one was right."""
        if right == guessed:
            self._step = min(self._step + 1, len(STEPS) - 1)
        else:
            self._step = max(0, bisect_right(STEPS, right + 1) - 1)
