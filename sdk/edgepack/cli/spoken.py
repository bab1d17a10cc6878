"""A model's own words on standard output."""

from __future__ import annotations

import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from edgepack.cli import reports
from edgepack.errors import visible

if TYPE_CHECKING:
    from edgepack.cli.rendered import Rendered
    from edgepack.decoding.results import Result
    from edgepack.decoding.stream import Stream

_JOINER = "\u200d"


def show(opening: Stream, ending: str, markdown: bool = False, *, calls: bool = False) -> Result:
    """Write a stream to standard output as it comes, and an ending; Ctrl-C ends it as soon as the engine can.

    In a terminal it may be rendered as Markdown. Where it may call tools, ``calls``, it is written when it is whole, as
    nobody knows before which of its words are a call; each call is a line of JSON after what was said beside it.
    """
    words = _words(markdown)
    with opening as stream, _interrupt_cancels(stream):
        try:
            for chunk in stream:
                if not calls:
                    words.write(chunk.text)
        except BaseException:
            words.break_off()
            raise
        if calls:
            words.write(stream.result.text)
            lines = [reports.encoded(call.to_dict(), indent=None) for call in stream.result.tool_calls]
            words.end("\n" if stream.result.text and lines else "")
            sys.stdout.write("\n".join(lines) + ending)
        else:
            words.end(ending)
    return stream.result


class Spoken:
    """Writes an answer as it comes. On a terminal, lines end between words, and control characters are written out.

    A word is held back until it is whole; one of a script without spaces is a letter long.
    """

    def __init__(self) -> None:
        self._columns = _columns()
        self._column = 0
        self._space = self._word = ""

    def write(self, text: str) -> None:
        """Go on with a piece of the answer."""
        if not self._columns:
            sys.stdout.write(text)
        for letter in visible(text, keep="\n\t") if self._columns else "":
            if letter.isspace():
                self._put()
                self._space += letter
                if letter == "\n":
                    self._write(self._space, 0)
            else:
                if self._word and not self._word.endswith(_JOINER) and _width(letter) > 1:
                    self._put()
                self._word += letter
        sys.stdout.flush()

    def end(self, text: str) -> None:
        """End the answer, and go on with a text that is not the model's."""
        self._put()
        sys.stdout.write(self._space + text)
        sys.stdout.flush()
        self._column, self._space = 0, ""

    def break_off(self) -> None:
        """End an answer in the middle, so that what is said of it begins a line."""
        self._put()
        self.end("\n" if self._column else "")

    def _put(self) -> None:
        if not self._word:
            return
        wide, space = _width(self._word), _width(self._space.expandtabs())
        if self._column and self._column + space + wide > self._columns:
            self._write("\n", 0)
        self._write(self._space + self._word, self._column + _width(self._space.expandtabs()) + wide)
        self._word = ""

    def _write(self, text: str, column: int) -> None:
        sys.stdout.write(text)
        self._column, self._space = column, ""
        if not column:
            self._columns = _columns()  # the window may have been resized


def _columns() -> int:
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 0


def _words(markdown: bool) -> Spoken | Rendered:
    if not (markdown and sys.stdout.isatty()):
        return Spoken()
    from edgepack.cli.rendered import Rendered

    return Rendered()


@contextmanager
def _interrupt_cancels(stream: Stream) -> Iterator[None]:
    """Turn the first Ctrl-C into a cancel, so that what was said so far is a result; a second one is not caught."""

    def cancel(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, before)
        stream.cancel()

    before = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
