"""Which token comes next: the sampler's choice, within what binds the answer, and within what a thought may take.

A thought is free, whatever binds its answer, unless that writes the mark which closes it: such a form is of both. It
ends where the model ends it, or where its tokens are spent: then the model's own closing words are written for it,
token by token, as if it had said them. A bound answer always finds the room that its shortest form needs, so that a
thought also ends in time for that.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.thinking import Thinking
from edgepack.decoding.sample import Sampler
from edgepack.errors import UsageError
from edgepack.text.divider import Divider
from edgepack.text.thoughts import Thought
from edgepack.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from edgepack.structured.constrain import Constraint, Grammar

Logits = NDArray[np.float32]
_ANY = 1 << 31


@dataclass(frozen=True, slots=True)
class Thinks:
    """How a text begins whose model thinks: with the ``marks``, after such a prompt, in at most ``most`` tokens."""

    marks: Thinking
    thought: Thought
    most: int | None = None


class Chooser:
    """Chooses the tokens of one text of at most ``limit``; each is to be pushed into its ``divider``, where it has one.

    ``grammar`` binds the answer, ``thinks`` is None for a text that is all answer, ``at_start`` is ``Detokenizer``'s.
    Raises ``SchemaError`` where not even the shortest answer that was found fits the limit, ``UsageError`` where the
    tokens of a thought are numbered that the grammar binds.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        grammar: Grammar | None,
        thinks: Thinks | None,
        *,
        limit: int,
        stop_ids: frozenset[int],
        at_start: bool,
    ) -> None:
        if thinks is not None and thinks.thought == "skipped" and grammar is not None:
            thinks = None  # a bound answer begins at once
        begun = thinks is not None and thinks.thought == "begun"
        self._of_both = thinks is not None and grammar is not None and grammar.spells(thinks.marks.closing)
        if self._of_both and thinks is not None and thinks.most is not None:
            raise UsageError(
                f"thinking_tokens was given beside a form that writes {thinks.marks.closing} itself.",
                hint="Leave it out, or bind the answer alone.",
            )
        self._tokenizer = tokenizer
        self._grammar = grammar
        self._thinks = thinks
        self._stop_ids = stop_ids
        self.divider: Divider | None = None
        self._ends_in = 0  # tokens that the end of a thought takes at most, wherever the thought is
        self._opening: Sequence[int] = ()
        # What is written before the bound part of an answer, which then no longer begins a text.
        self._before = [] if grammar is None or not grammar.opening else [*self._spelt(grammar.opening)]
        if thinks is not None:
            self.divider = Divider(thinks.marks, tokenizer, at_start=at_start, begun=begun)
            ending = thinks.marks.ending
            if grammar is not None and not self._of_both:
                self._ends_in = max(len(self._spelt(ending[start:])) for start in range(len(ending)))
                self._opening = self._spelt(thinks.marks.opening)
        self._bound = self._constraint(
            limit,
            beside=len(self._before) + (self._ends_in if begun else 0),
            at_start=at_start and not self._before and (self._of_both or not begun),
        )
        self._words: deque[int] = deque()  # of the model's own, which are written for it
        self._closing: deque[int] | None = None  # what is left of the tokens that close an answer before its limit

    @property
    def closed(self) -> bool:
        """Whether a bound answer was closed before the model ended it."""
        return self._closing is not None

    @property
    def finished(self) -> bool:
        """Whether the answer is bound and nothing but a stop token may follow."""
        return self._answers and self._bound is not None and self._bound.finished

    def choose(self, logits: Logits, sampler: Sampler, left: int) -> int | None:
        """Return the next token, of which ``left`` may come with this one; None where a bound answer has to end."""
        if self._words:
            return self._words.popleft()
        divider = None if self._of_both else self.divider
        if divider is not None and divider.place == "thought":
            return self._think(logits, sampler, left, divider)
        if self._bound is None:
            return sampler(logits)
        if divider is not None and divider.place == "before":
            return self._begin(logits, sampler, left, divider, self._bound)
        return self._answer(logits, sampler, left, self._bound)

    @property
    def _answers(self) -> bool:
        return not self._words and (self._of_both or self.divider is None or self.divider.place == "answer")

    def _begin(self, logits: Logits, sampler: Sampler, left: int, divider: Divider, bound: Constraint) -> int | None:
        """Choose between the token that opens a thought, where it has room, and those that may begin the answer.

        A mark of several tokens is written whole once its first was chosen: half of it could neither be shown nor taken
        back.
        """
        after = self._constraint(_ANY, at_start=False)
        first, *rest = self._opening
        needed = len(self._opening) + self._ends_in + len(self._before)
        if after is not None and first < logits.size and left > needed + after.least:
            allowed = bound.allowed
            if self._before:
                allowed[:] = False
                allowed[self._before[0]] = True
            allowed[first] = True
            if (token := sampler(logits, allowed)) == first:
                self._bound = after
                self._words.extend(rest)
                return token
            if not self._before:
                divider.answers()
                return self._taken(token, left, bound)
        return self._answer(logits, sampler, left, bound)

    def _think(self, logits: Logits, sampler: Sampler, left: int, divider: Divider) -> int:
        most = None if self._thinks is None else self._thinks.most
        if most is not None and divider.inside >= most:
            return self._written(divider.cut())
        if self._bound is None:
            return sampler(logits)
        if left <= self._ends_in + len(self._before) + self._bound.least:
            return self._written(divider.cut())
        token = sampler(logits)
        beyond = divider.beyond(token)
        if beyond is None:
            return self._written(divider.cut()) if token in self._stop_ids else token
        # What leads to the answer is written as well, so that the answer is bound from its first character on.
        separator = "" if self._thinks is None else self._thinks.marks.separator
        if not separator.startswith(beyond):
            return self._written(divider.cut())
        self._words.extend(self._spelt(separator[len(beyond) :]))
        return token

    def _answer(self, logits: Logits, sampler: Sampler, left: int, bound: Constraint) -> int | None:
        if self.divider is not None and not self._of_both:
            self.divider.answers()
        if self._before:
            self._words.extend(self._before)
            self._before.clear()
            return self._words.popleft()
        if self._closing is not None:
            return self._close(bound)
        return self._taken(sampler(logits, bound.allowed), left, bound)

    def _taken(self, token: int, left: int, bound: Constraint) -> int | None:
        if token in self._stop_ids:
            return token
        closing = bound.closing(token, left)
        if closing is None:
            bound.accept(token)
            return token
        self._closing = deque(closing)
        return self._close(bound)

    def _close(self, bound: Constraint) -> int | None:
        if not self._closing:
            return None
        token = self._closing.popleft()
        bound.accept(token)
        return token

    def _written(self, words: str) -> int:
        self._words.extend(self._spelt(words))
        return self._words.popleft()

    def _spelt(self, words: str) -> Sequence[int]:
        return self._tokenizer.encode(words, bos=False, special=True)

    def _constraint(self, limit: int, *, beside: int = 0, at_start: bool) -> Constraint | None:
        if self._grammar is None:
            return None
        from edgepack.structured.constrain import Constraint

        return Constraint(self._grammar, limit, beside=beside, at_start=at_start)
