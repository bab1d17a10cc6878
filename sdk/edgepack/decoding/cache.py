"""What the KV cache of a session holds: the tokens, and the steps in which they were evaluated. Pure bookkeeping.

The steps matter because engines round differently when they evaluate one token or many: a cache is the same to the
last bit only where the same tokens came in the same steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from edgepack.prefix import common_length

Step = tuple[int, int]
"""A step as (tokens of it that are kept, tokens that were evaluated in it)."""

Trail = tuple[tuple[int, int, int], ...]
"""Steps in order, as (tokens kept, tokens evaluated, how many such steps one after the other)."""


class Cache:
    """The tokens in a cache and the steps that put them there.

    ``chosen`` is the token that came after the last of them and was not evaluated: the last of an answer.
    """

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.steps: list[Step] = []
        self.chosen: int | None = None

    @property
    def said(self) -> list[int]:
        """The tokens, with the one that was chosen after them."""
        return self.tokens if self.chosen is None else [*self.tokens, self.chosen]

    @property
    def trail(self) -> Trail:
        """The steps, run by run."""
        return tuple((*step, len(list(run))) for step, run in groupby(self.steps))

    def append(self, tokens: Sequence[int]) -> None:
        """Note a step."""
        self.tokens.extend(tokens)
        self.steps.append((len(tokens), len(tokens)))
        self.chosen = None

    def cut(self, length: int) -> None:
        """Forget all but the first ``length`` tokens."""
        surplus = len(self.tokens) - length
        while surplus > 0:
            kept, evaluated = self.steps.pop()
            if kept > surplus:
                self.steps.append((kept - surplus, evaluated))
            surplus -= kept
        del self.tokens[length:]
        self.chosen = None

    def shared(self, prompt: Sequence[int], chunk: int | None = None) -> int:
        """Return how many tokens a prompt can take over: those of the common beginning, never all of the prompt.

        At least one token of a prompt is evaluated, because its logits are wanted. With a ``chunk``, only steps count
        that a prefill from nothing would take too: of so many tokens each.
        """
        common, kept = min(common_length(self.tokens, prompt), len(prompt) - 1), 0
        if chunk is None:
            return common
        for step in self.steps:
            if kept + chunk > common or step != (chunk, chunk):
                break
            kept += chunk
        return kept
