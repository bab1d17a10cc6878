"""What was typed: a text for the model, or a command. It knows no terminal and no model."""

from __future__ import annotations

import re

QUOTES = '"""'
_OPENED = re.compile(rf"\s*(?:/\S+[ \t]+)?{QUOTES}")


def is_open(text: str) -> bool:
    """Return whether a text in three quotes, alone or after a command, goes on in the next line."""
    opened = _OPENED.match(text)
    return opened is not None and QUOTES not in text[opened.end() :]


def parsed(text: str) -> tuple[str, str]:
    """Return a command, as ``/set``, and what stands after it; "" and the text for what is no command."""
    text = text.strip()
    if not text.startswith("/"):
        return "", _unquoted(text)
    name, *rest = text.split(None, 1)
    return name, _unquoted(rest[0]) if rest else ""


def _unquoted(text: str) -> str:
    """Return what stands in three quotes, without the line ends beside them; any other text as it is."""
    if len(text) < 2 * len(QUOTES) or not (text.startswith(QUOTES) and text.endswith(QUOTES)):
        return text
    return text[len(QUOTES) : -len(QUOTES)].removeprefix("\n").removesuffix("\n")
