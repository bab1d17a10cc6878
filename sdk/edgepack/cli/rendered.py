"""A model's own words as Markdown, in a terminal."""

from __future__ import annotations

from itertools import pairwise

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.markdown import Markdown
from rich.segment import Segment

from edgepack.cli.screen import out
from edgepack.cli.spoken import Spoken


class Rendered:
    """Writes an answer block by block: what is whole stays, and the last block is drawn again as it grows.

    Where it grows beyond the screen, its end shows when it is whole.
    """

    def __init__(self) -> None:
        self._console = out()
        self._growing = ""
        self._blocks = 0
        self._thought: Spoken | None = None
        self._live = Live(
            get_renderable=lambda: _Block(self._growing),
            console=self._console,
            refresh_per_second=8,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def think(self, text: str) -> None:
        """Go on with a piece of the thought, which is not rendered."""
        if text:
            self._thought = self._thought or Spoken()
            self._thought.think(text)

    def write(self, text: str) -> None:
        """Go on with a piece of the answer."""
        if not text:
            return
        self._answers("\n\n")
        self._live.start()
        text = self._growing + text
        whole = _whole(text)
        self._growing = text[whole:]
        self._put(text[:whole])

    def end(self, text: str) -> None:
        """End the answer, and go on with a text that is not the model's."""
        self._answers("\n")
        last, self._growing = self._growing, ""
        self._live.stop()
        self._put(last)
        self._console.file.write(text.removeprefix("\n"))  # a block ends its line itself
        self._console.file.flush()

    def break_off(self) -> None:
        """End an answer in the middle."""
        self.end("")

    def _answers(self, ending: str) -> None:
        if self._thought:
            self._thought.end(ending)
            self._thought = None

    def _put(self, text: str) -> None:
        for block in _blocks(text):
            if self._blocks:
                self._console.print()
            self._console.print(_Block(block))
            self._blocks += 1


class _Block:
    """A block without the empty lines around it, of which rich has none, one or two."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        # A link shows where it leads: the text that a model gives it may say something else.
        document = Markdown(self._text, code_theme="ansi_dark", hyperlinks=False)
        lines = console.render_lines(document, options, pad=False)
        seen = [index for index, line in enumerate(lines) if any(segment.text.strip() for segment in line)]
        for line in lines[seen[0] : seen[-1] + 1] if seen else []:
            yield from line
            yield Segment.line()


def _begins(text: str) -> list[int]:
    """Return the lines at which the blocks of a text begin."""
    tokens = Markdown(text).parsed
    return [token.map[0] for token in tokens if token.level == 0 and token.nesting >= 0 and token.map]


def _blocks(text: str) -> list[str]:
    lines = text.splitlines(keepends=True)
    begins = [*_begins(text), len(lines)]
    return ["".join(lines[begin:end]) for begin, end in pairwise(begins)]


def _whole(text: str) -> int:
    """Return the length of the blocks that nothing more can change: all but the last."""
    begins = _begins(text)
    return len("".join(text.splitlines(keepends=True)[: begins[-1]])) if len(begins) > 1 else 0
