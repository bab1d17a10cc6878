"""What a model says, divided into its thought and its answer, token by token.

A mark is found however tokens cut it, and also where it is a special token, which has no text of its own. What may be
the beginning of a mark is held back until it is decided.
"""

from __future__ import annotations

from typing import Literal

from edgepack.bundle.thinking import Thinking
from edgepack.prefix import overlap
from edgepack.text.detokenize import Detokenizer
from edgepack.text.tokenizer import Tokenizer

Place = Literal["before", "thought", "answer"]


class Divider:
    """Divides one text. ``begun``: its prompt has opened the thought; else the text may open one, and only there.

    White space at the ends of a thought belongs to nothing, nor does that between it and its answer. ``place`` is where
    the next token stands, as far as it is decided; ``thinks`` whether there was a thought. ``tokens`` counts those of
    the thought with its marks, ``inside`` those after its opening one. ``answer_from`` is how many tokens stand before
    those of the answer, None where it begins inside of one, or has not begun.
    """

    def __init__(self, marks: Thinking, tokenizer: Tokenizer, *, at_start: bool, begun: bool) -> None:
        self._marks = marks
        self._tokenizer = tokenizer
        self._detokenizer = Detokenizer(tokenizer, at_start=at_start)
        self.place: Place = "thought" if begun else "before"
        self.thinks = begun
        self.tokens = self.inside = 0
        self.answer_from: int | None = None
        self._held = ""  # what may become a mark
        self._shown = ""  # the same, as it would read without one
        self._space = ""  # of the thought, which may be its end
        self._begins = True  # white space comes before what is told next

    def push(self, token: int) -> tuple[str, str]:
        """Return what a token adds to the thought, and what to the answer."""
        shown = self._detokenizer.push(token)
        if self.place == "answer":
            return "", self._answered(shown)
        self.tokens += 1
        said = self._name(token) or shown
        if self.place == "before":
            self._held += said
            self._shown += shown
            begun = self._held.lstrip()
            if self._marks.opening.startswith(begun):
                if begun != self._marks.opening:
                    return "", ""
            elif not begun.startswith(self._marks.opening):
                self.answers()
                return "", self._take()
            self.place, self.thinks = "thought", True
            self._held, self._shown, said = "", "", begun.removeprefix(self._marks.opening)
        else:
            self.inside += 1
        return self._in_thought(said)

    def finish(self) -> tuple[str, str]:
        """Return what was held back: it turned out to be no mark."""
        if self.place == "thought":
            held, self._held = self._held, ""
            return self._thought(held), ""
        return "", self._take()

    def answers(self) -> None:
        """Let what comes be the answer, white space and all."""
        self.place, self._begins = "answer", False
        if not self.thinks:
            self.tokens = 0

    def cut(self) -> str:
        """Return the words that close the thought here, and lead to the answer; an unfinished character is left out."""
        self._detokenizer = Detokenizer(self._tokenizer, at_start=False)
        if self._held:
            return self._marks.closing[len(self._held) :] + self._marks.separator
        return self._marks.ending.lstrip() if "\n" in self._space else self._marks.ending

    def beyond(self, token: int) -> str | None:
        """Return what a token says after the end of the thought, None where it does not end it. A question only."""
        _, closed, beyond = (self._held + self._piece(token)).partition(self._marks.closing)
        return beyond if closed else None

    def _in_thought(self, said: str) -> tuple[str, str]:
        self._held += said
        thought, closed, beyond = self._held.partition(self._marks.closing)
        if not closed:
            end = len(self._held) - overlap(self._held, self._marks.closing)
            thought, self._held = self._held[:end], self._held[end:]
            return self._thought(thought), ""
        told = self._thought(thought)
        self._held, self.place, self._begins = "", "answer", True
        self.answer_from = None if beyond.strip() or self._detokenizer.unfinished else self.tokens
        return told, self._answered(beyond)

    def _thought(self, text: str) -> str:
        text = self._space + text
        if self._begins:
            text = text.lstrip()
        told = text.rstrip()
        self._space = text[len(told) :]
        self._begins = self._begins and not told
        return told

    def _answered(self, text: str) -> str:
        if self._begins:
            text = text.lstrip()
            self._begins = not text
        return text

    def _take(self) -> str:
        shown, self._shown, self._held = self._shown, "", ""
        return shown

    def _name(self, token: int) -> str:
        """Return the name of a special token that a mark is made of, "" for any other."""
        if token not in self._tokenizer.special_ids:
            return ""
        name = self._tokenizer.token(token)
        return name if name in self._marks.opening or name in self._marks.closing else ""

    def _piece(self, token: int) -> str:
        return self._name(token) or self._tokenizer.token_bytes(token).decode("utf-8", errors="replace")
