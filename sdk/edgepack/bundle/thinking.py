"""How a model thinks before it answers: what its chat template says of it, as a manifest records it."""

from __future__ import annotations

from typing import Annotated

import msgspec

Mark = Annotated[str, msgspec.Meta(min_length=1, max_length=64)]
Words = Annotated[str, msgspec.Meta(max_length=256)]

CONTENT = "content"
"""The field of a message in which the thought stands between its marks, before the answer."""

CLIENTS = "reasoning_content"
"""The field in which clients of OpenAI's interface send an earlier thought back."""


class Switch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """How a template is told to let its model think, or not: the values of the ``variable`` that it reads, or without
    one the words that it looks for in a system message."""

    on: bool | str
    off: bool | str
    variable: str | None = None


class Thinking(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True, omit_defaults=True):
    """The marks around a thought, and what a prompt says of it.

    ``begun`` is what a prompt ends with that opens the thought itself ("" where the model opens it), ``skipped`` what
    one ends with that has the model answer without a thought ("" where it says so elsewhere, or never).
    ``ending`` is what closes a thought in the model's own words, up to the answer. ``default``: it thinks where nobody
    says whether it is to. ``field`` is the one of a message from which an earlier thought is printed: ``CONTENT``,
    another, or None, where earlier thoughts are left out.
    """

    opening: Mark
    closing: Mark
    ending: Words
    begun: Words = ""
    skipped: Words = ""
    default: bool = True
    switch: Switch | None = None
    field: str | None = None

    def __post_init__(self) -> None:
        if self.closing not in self.ending:
            raise ValueError(f"the ending {self.ending!r} does not close a thought with {self.closing!r}")

    @property
    def separator(self) -> str:
        """What stands between the mark that closes a thought and the answer."""
        return self.ending[self.ending.index(self.closing) + len(self.closing) :]

    def whole(self, thought: str, answer: str) -> str:
        """Return a thought and its answer as the model says them."""
        lead = self.begun or self.opening + "\n" * self.ending.startswith("\n")
        return f"{lead}{thought}{self.ending}{answer}"
