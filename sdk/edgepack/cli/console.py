"""The consoles of the commands: foreign text that reaches them is text, whatever a terminal would make of it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from edgepack.errors import visible


class PlainConsole(Console):
    """A console that reads no markup in strings and writes control characters out; styles are for Text to carry."""

    def __init__(self, stderr: bool = False) -> None:
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Yield what is to be written, of which only what rich itself says about the cursor is obeyed."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n\t"))
