"""Where a chat reads: an editor of lines, or lines as the system gives them in a terminal that moves no cursor."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Protocol

from edgepack.cli.talk.presses import Pressed
from edgepack.cli.talk.typed import is_open

PROMPT, MORE = "> ", ". "
Completing = Callable[[str], Iterable[str]]
"""Returns the words that the last word of a line may become."""


class Lines(Protocol):
    """Reads what is typed at a prompt."""

    def read(self) -> str:
        """Return a text, of several lines where they were quoted or pasted.

        Raises ``EOFError`` at the end of the input, ``Pressed`` for Ctrl-C: with an editor, in an empty line only.
        """
        ...


class PlainLines:
    """Reads from standard input. The prompt never goes where answers are piped."""

    def __init__(self) -> None:
        with suppress(ImportError):  # Windows has none
            import readline  # noqa: F401 - input() edits lines once it is imported

    def read(self) -> str:
        """Read as ``Lines`` says."""
        text = _line(PROMPT)
        while is_open(text):
            text += "\n" + _line(MORE)
        return text


def _line(prompt: str) -> str:
    try:
        if sys.stdout.isatty():
            return input(prompt)
        sys.stderr.write(prompt)
        sys.stderr.flush()
        return input()
    except (EOFError, Pressed):  # which leave the cursor behind what was typed
        sys.stderr.write("\n")
        raise
