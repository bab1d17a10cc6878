"""The terminal of a chat: Ctrl-C is told from SIGTERM and SIGHUP, which end the command, and leave it as it was."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Pressed(KeyboardInterrupt):
    """Ctrl-C was pressed."""


@contextmanager
def presses() -> Iterator[None]:
    """Let SIGINT raise ``Pressed`` inside the block, wherever nothing else takes it."""

    def press(number: int, frame: FrameType | None) -> None:
        raise Pressed

    before = signal.signal(signal.SIGINT, press)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def as_found() -> Iterator[None]:
    """Give the terminal of standard input its settings back after the block: a signal may come when an editor has
    changed them, and has not yet begun what would change them back."""
    try:
        import termios
    except ImportError:  # Windows has none
        yield
        return
    before = termios.tcgetattr(sys.stdin)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
