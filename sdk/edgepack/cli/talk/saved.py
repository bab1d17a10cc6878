"""Where conversations are saved: under a name in the state folder, or at a path."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from edgepack.device.state import state_folder
from edgepack.errors import EdgepackError, UsageError

_NAME = re.compile(r"\w[\w.-]{0,99}")
_ENDING = ".chat"


def place(word: str) -> Path:
    """Return the file of a conversation: a word with a slash is a path, any other a name.

    Raises ``UsageError`` for what is neither, ``EdgepackError`` for a user without a home.
    """
    try:
        if "/" in word or os.sep in word:
            return Path(word).expanduser()
        if not _NAME.fullmatch(word):
            raise UsageError(
                f"{word!r} is no name.", hint="It has letters, digits, '.', '_' and '-'; a path has a slash: ./my chat"
            )
        return _folder() / (word + _ENDING)
    except RuntimeError as error:
        raise EdgepackError(f"There is no folder for {word!r}: {error}.", hint="Give a path: ./NAME") from None


def names() -> list[str]:
    """Return the names of what is saved in the state folder."""
    found: list[str] = []
    with suppress(OSError, RuntimeError):
        found = [each.name.removesuffix(_ENDING) for each in _folder().iterdir() if each.name.endswith(_ENDING)]
    return sorted(name for name in found if _NAME.fullmatch(name))


def _folder() -> Path:
    return state_folder() / "chats"
