"""What the KV cache of a session holds: the tokens, and the steps in which they were evaluated. Pure bookkeeping.

The steps matter because engines round differently when they evaluate one token or many: a cache is the same to the
last bit only where the same tokens came in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

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
        while sum(self.steps) > length:
            surplus = sum(self.steps) - length
            if self.steps[-1] <= surplus:
                self.steps.pop()
            else:
                self.steps[-1] -= surplus
        del self.tokens[length:]

    def shared(self, prompt: Sequence[int]) -> int:
        """Return how many tokens a prompt can take over: whole steps of the common beginning, never all of it.

        At least one token of a prompt is evaluated, because its logits are wanted.
        """
        return self._whole_steps(self._common(prompt))

    def shared_exactly(self, prompt: Sequence[int], chunk: int) -> int:
        """Return the same, of those steps only that a prefill from nothing would take too: ``chunk`` tokens each."""
        common, kept = self._common(prompt), 0
        for size in self.steps:
            if size != chunk or kept + size > common:
                break
            kept += size
        return kept

    def _common(self, prompt: Sequence[int]) -> int:
        most = min(len(self.tokens), len(prompt) - 1)
        for index in range(most):
            if self.tokens[index] != prompt[index]:
                return index
        return max(0, most)

    def _whole_steps(self, length: int) -> int:
        kept = 0
        for size in self.steps:
            if kept + size > length:
                break
            kept += size
        return kept
