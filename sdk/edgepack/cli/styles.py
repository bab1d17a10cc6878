"""What the terminal of a stream can show: styles, and so many columns."""

from __future__ import annotations

import os
from typing import TextIO


def allowed(stream: TextIO) -> bool:
    """Whether a stream is a terminal that knows styles, and its user wants some (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def columns(stream: TextIO) -> int | None:
    """Return how wide the terminal of a stream is; None where it is none, or does not say."""
    if not stream.isatty():
        return None
    said = os.environ.get("COLUMNS", "")
    if said.isdecimal() and int(said):
        return int(said)
    try:
        return os.get_terminal_size(stream.fileno()).columns or None
    except (OSError, ValueError):
        return None
