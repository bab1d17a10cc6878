"""Whether what is written may be styled."""

from __future__ import annotations

import os
from typing import TextIO


def allowed(stream: TextIO) -> bool:
    """Whether a stream is a terminal that knows styles, and its user wants some (https://no-color.org)."""
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
