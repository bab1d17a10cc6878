"""How much of a conversation has to go: as few of its oldest turns as make room, found without trying each of them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate, pairwise


def turns(messages: Sequence[Mapping[str, object]], system: int) -> list[int]:
    """Return where the turns after the system prompt of so many messages begin: at what a user says."""
    return [index for index, message in enumerate(messages) if message["role"] == "user" and index >= system]


def fewest(
    messages: Sequence[Mapping[str, object]], begins: Sequence[int], tokens: int, room: int, count: Callable[[int], int]
) -> int:
    """Return how many of the oldest turns to leave out, so that at most ``room`` tokens are left: all but the last
    where that is not enough.

    ``begins`` are the places of at least two turns, ``tokens`` are those of all messages, and ``count`` those that
    leaving out so many turns leaves, fewer for more. A guess by the length of the turns is tried and mended, and every
    fourth try halves what is left, so that ``count``, which renders and encodes, is called for a few of many turns.
    """
    written = [len(str(message)) for message in messages]
    ends = [0, *accumulate(sum(written[begin:end]) for begin, end in pairwise(begins))]
    rate = tokens / sum(written)
    low, high, tried, tries = 0, len(begins), 0, 0
    while high - low > 1:
        tries += 1
        guess = bisect_left(ends, ends[tried] + (tokens - room) / rate) if tries % 4 else (low + high) // 2
        tried = min(max(guess, low + 1), high - 1)
        tokens = count(tried)
        low, high = (low, tried) if tokens <= room else (tried, high)
    return min(high, len(begins) - 1)
