"""Which seat a request gets, what of its prompt another has already, and which steps go together. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from edgepack.decoding.seat import Ask, Seat
from edgepack.decoding.turn import Turn
from edgepack.prefix import common_length

WORTH: Final = 64
"""Tokens from which on a beginning is copied from another sequence, or waited for, rather than evaluated again."""
NEAR: Final = 3
"""How far apart two sequences may be to be computed together, see ``edgepack_runtimes.spans``."""


def choose(free: Sequence[Seat], busy: Sequence[Seat], prompt: Sequence[int]) -> Seat:
    """Return the seat for a prompt, of those that are free, the longest unused first.

    Engines compute together what lies side by side. So it is near one that is busy, where one is: of these the one that
    holds most of the prompt, if half of what it holds is that, as another's past is not taken for the sake of a
    beginning that can be copied. Else the one with which those that are busy lie closest together.
    """
    numbers = [seat.number for seat in busy]
    near = [seat for seat in free if any(abs(seat.number - each) <= NEAR for each in numbers)] or free
    shared = {seat.number: seat.shares(prompt) for seat in near}
    own = [seat for seat in near if 2 * shared[seat.number] >= max(1, len(seat.cache.tokens))]
    if own or not busy:
        return max(own, key=lambda seat: shared[seat.number]) if own else near[0]
    return min(near, key=lambda seat: (_width(*numbers, seat.number), min(abs(seat.number - each) for each in numbers)))


def loses(seat: Seat, prompt: Sequence[int]) -> bool:
    """Say whether a prompt takes from a seat what is worth a copy."""
    return len(seat.cache.tokens) >= seat.shares(prompt) + WORTH


def source(seat: Seat, prompt: Sequence[int], turns: Sequence[Turn]) -> tuple[Turn, int] | None:
    """Return whose turn evaluates, or has evaluated, more of a prompt than a seat holds, and how many tokens of it.

    ``turns`` are the last of each seat, over or not. None where that is not worth a copy.
    """
    best: tuple[Turn, int] | None = None
    most = seat.shares(prompt) + WORTH
    for turn in turns:
        if turn.seat is None or turn.seat is seat:
            continue
        there = turn.seat.shares(prompt)
        if (holder := turn.holder) is not None and not turn.over:
            there = max(there, common_length(holder._prompt, prompt))
        if (length := min(there, len(prompt) - 1)) >= most:
            best, most = (turn, length), length + 1
    return best


def together(asked: Sequence[tuple[Turn, Ask]], chunk: int) -> list[tuple[Turn, Ask]]:
    """Return what is evaluated in one step: what goes on with an answer, and at most a chunk of prompts.

    The prompt comes first whose last part is the longest ago; one that was not begun before all.
    """
    prompts = sorted((each for each in asked if is_prompt(each[1])), key=lambda each: each[0].served)
    chosen, room = [each for each in asked if not is_prompt(each[1])], chunk
    for turn, ask in prompts:
        if room == chunk or len(ask.tokens) <= room:
            chosen.append((turn, ask))
            room -= len(ask.tokens)
    return chosen


def is_prompt(ask: Ask) -> bool:
    """Say whether a step is of a prompt, and not a token of an answer, or guesses of it."""
    return len(ask.tokens) > 1 and not ask.every


def _width(*numbers: int) -> int:
    return max(numbers) - min(numbers)
