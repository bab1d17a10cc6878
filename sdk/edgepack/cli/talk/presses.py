"""Ctrl-C in a chat: a press is told from SIGTERM and SIGHUP, which end the command."""

from __future__ import annotations

import signal
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
