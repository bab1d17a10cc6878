"""A model's own words on standard output."""

from __future__ import annotations

import shutil
import sys

from edgepack.errors import visible

_JOINER = "\u200d"


class Spoken:
    """Writes an answer as it comes. On a terminal, lines end between words, and control characters are written out.

    A word is held back until it is whole; one of a script without spaces is a letter long.
    """

    def __init__(self) -> None:
        self._columns = shutil.get_terminal_size().columns if sys.stdout.isatty() else 0
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


def _width(text: str) -> int:
    from rich.cells import cell_len

    return cell_len(text)
