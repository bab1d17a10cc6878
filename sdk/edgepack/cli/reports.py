"""What a command reports as JSON: one document on standard output, written when the command ends.

So what went wrong after the report was made is in the same document, and none is ever half of one.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from edgepack.errors import visible

_report: dict[str, Any] = {}


def add(values: Mapping[str, Any]) -> None:
    """Add JSON values to the report of the command that runs."""
    _report.update(values)


def forget() -> None:
    """Begin anew, for another command."""
    _report.clear()


def write() -> None:
    """Write the report to standard output, if there is any."""
    if not _report:
        return
    text = encoded(_report, indent=2) + "\n"
    forget()
    sys.stdout.write(text)


def encoded(value: object, indent: int | None) -> str:
    """Return a value as JSON that standard output can take and no terminal obeys."""
    import json  # for those alone who write some

    text = visible(json.dumps(value, indent=indent, ensure_ascii=False, default=_plain), keep="\n")
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # "?" in the place of a character would be another value
        return json.dumps(value, indent=indent, default=_plain)
    return text


def _plain(value: object) -> object:
    return dict(value) if isinstance(value, Mapping) else str(value)
