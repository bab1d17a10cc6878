"""The consoles of the commands: foreign text that reaches them is text, whatever a terminal would make of it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from edgepack.errors import visible

_WHOLE = 10_000
"""Columns of what is no terminal, so that no table is folded or cut there."""


class PlainConsole(Console):
    """A console that reads no markup in strings and writes control characters out; styles are for Text to carry.

    No line ends in blanks. Outside a terminal lines are as long as they are, unless ``COLUMNS`` says how wide it is.
    """

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)
        if not self.is_terminal and "COLUMNS" not in os.environ:
            self.width = _WHOLE

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be written, of which only what rich itself says about the cursor is obeyed."""
        for segment in _without_blank_ends(super().render(renderable, options)):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n\t"))

    def on_broken_pipe(self) -> None:
        """Leave it to the command's end, which rich would make an ordinary failure."""
        raise BrokenPipeError


def _without_blank_ends(segments: Iterable[Segment]) -> Iterator[Segment]:
    blanks: list[Segment] = []
    for segment in segments:
        kept = segment.text.rstrip(" ")
        if kept or segment.control:
            if not kept.startswith("\n"):
                yield from blanks
            blanks = []
            yield segment if segment.control else segment._replace(text=kept)
        if kept != segment.text and not segment.control:
            blanks.append(segment._replace(text=segment.text[len(kept) :]))
    yield from blanks
