"""What the KV cache of a session holds: the tokens, and the steps in which they were evaluated. Pure bookkeeping.

The steps matter because engines round differently when they evaluate one token or many: a cache is the same to the
last bit only where the same tokens came in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from edgepack.prefix import common_length

Trail = tuple[tuple[int, int], ...]
"""Steps in order, as (tokens in a step, how many such steps one after the other)."""


class Cache:
    """The tokens in a cache and the sizes of the steps that put them there."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.steps: list[int] = []

    @property
    def trail(self) -> Trail:
        """The steps, run by run."""
        return tuple((size, len(list(run))) for size, run in groupby(self.steps))

    def append(self, tokens: Sequence[int]) -> None:
        """Note a step."""
        self.tokens.extend(tokens)
        self.steps.append(len(tokens))

    def cut(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        surplus = len(self.tokens) - length
        while surplus > 0:
            last = self.steps.pop()
            if last > surplus:
                self.steps.append(last - surplus)
            surplus -= last
        del self.tokens[length:]

    def shared(self, prompt: Sequence[int], chunk: int | None = None) -> int:
        """Return how many tokens a prompt can take over: whole steps of the common beginning, never all of it.

        At least one token of a prompt is evaluated, because its logits are wanted. With a ``chunk``, only steps count
        that a prefill from nothing would take too: of so many tokens each.
        """
        common, kept = min(common_length(self.tokens, prompt), len(prompt) - 1), 0
        for size in self.steps:
            if kept + size > common or chunk not in (None, size):
                break
            kept += size
        return kept
