"""The texts that a command is given: files, and words of the command line."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgepack.errors import UsageError


def read(path: Path) -> str:
    """Return a file's text, without a byte order mark. Raises ``UsageError`` for none, and for what is not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    if not text:
        raise UsageError(f"{path} is empty.")
    return text


def schema(given: str) -> str:
    """Return a JSON schema that is given as it is, in braces, or by the name of its file. Raises as ``read``."""
    return argument(given) if given.lstrip().startswith("{") else read(Path(given))


def argument(text: str) -> str:
    """Return a word of the command line as it was typed, in UTF-8: in the C locale Python keeps it byte by byte."""
    if not re.search("[\udc80-\udcff]", text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        return text
