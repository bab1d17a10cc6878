"""The text side of a source, as everything downstream reads it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# A vocabulary may hold hundreds of reserved names that differ by a number; the first and the last stand for them.
_ADDED_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Text:
    """The source's text side. ``files`` maps file names ("tokenizer.json", ...) to their bytes, to be carried along.

    ``tool_use`` is the template that takes the chat template's place where tools are given, ``left_out`` are the names
    of templates that are not carried, ``notes`` what was passed over in the files, a sentence each. ``ends`` are the
    tokens that end each text of a model that embeds.
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
    ends: tuple[int, ...] = ()

    def names(self, *, special: bool) -> list[str]:
        """Return the names of added tokens, special ones or others: those that a template writes, and of the rest the
        first and the last."""
        templates = (self.chat_template or "") + (self.tool_use or "")
        names = [
            token["content"]
            for token in self.tokenizer.get("added_tokens") or []
            if bool(token.get("special")) is special
        ]
        return list(dict.fromkeys([*(name for name in names if name in templates), *_ends(names)]))


def _ends(names: Sequence[str]) -> Sequence[str]:
    half = _ADDED_TOKENS // 2
    return names if len(names) <= _ADDED_TOKENS else [*names[:half], *names[-half:]]
