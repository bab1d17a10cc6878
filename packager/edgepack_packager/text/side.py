"""The text side of a source, as everything downstream reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Text:
    """The source's text side. ``files`` maps file names ("tokenizer.json", ...) to their bytes, to be carried along.

    ``tool_use`` is the template that takes the chat template's place where tools are given, ``left_out`` are the names
    of templates that are not carried, ``notes`` what was passed over in the files, a sentence each.
    """

    files: Mapping[str, bytes]
    tokenizer: Mapping[str, Any]
    bos: int | None
    add_bos: bool
    stops: tuple[int, ...]
    chat_template: str | None
    tool_use: str | None = None
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
