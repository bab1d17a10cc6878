"""A model's own words on standard output."""

from __future__ import annotations

import shutil
import sys

from edgepack.cli import styles
from edgepack.errors import visible

_JOINER = "\u200d"
_DIM, _PLAIN = "\x1b[2m", "\x1b[22m"


class Spoken:
    """Writes an answer as it comes. On a terminal, lines end between words, and control characters are written out.

    A word is held back until it is whole; one of a script without spaces is a letter long. A thought is written before
    its answer, dim, and on terminals alone: what reads a pipe asked for the answer.
    """

    def __init__(self) -> None:
        self._columns = _columns()
        self._column = 0
        self._space = self._word = ""
        self._thinks = False

    def think(self, text: str) -> None:
        """Go on with a piece of the thought."""
        if not text or not self._columns:
            return
        if not self._thinks:
            self._thinks = True
            self._style(_DIM)
        self._words(text)

    def write(self, text: str) -> None:
        """Go on with a piece of the answer."""
        if text and self._thinks:
            self.end("\n\n")
        self._words(text)

    def _words(self, text: str) -> None:
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
        if self._thinks:
            self._thinks = False
            self._style(_PLAIN)
        sys.stdout.write(self._space + text)
        sys.stdout.flush()
        self._column, self._space = 0, ""

    def break_off(self) -> None:
        """End an answer in the middle, so that what is said of it begins a line."""
        self._put()
        self.end("\n" if self._column else "")

    def _style(self, code: str) -> None:
        if styles.allowed(sys.stdout):
            sys.stdout.write(code)

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


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
