"""Where the added tokens of a tokenizer stand in a text, as the tokenizers library finds them.

At each place the longest name counts. In a marked text, the name of a special token that its template did not write is
no name: a character of it is hidden while names are looked for, so that what overlaps it may still be one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec

from edgepack.text.marks import PRIVATE, Marked

SPACES = frozenset("\t\n\x0b\x0c\r \x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
"""The white space of Unicode, which ``str.isspace`` has more than (Unicode Character Database, White_Space)."""


class Added(msgspec.Struct, frozen=True, array_like=True):
    """An added token: its name as it stands in a text, its id, and whether it takes the white space before and after
    it."""

    name: str
    id: int
    special: bool = False
    before: bool = False
    after: bool = False


class Found(NamedTuple):
    """A part of a text: an added token's, or (None) what others may be in."""

    start: int
    end: int
    id: int | None


class Finder:
    """Finds added tokens. Raises ``ValueError`` for a token without a name."""

    def __init__(self, tokens: Sequence[Added]) -> None:
        self._tokens = {token.name: token for token in tokens}
        self._special = {token.id: token.name for token in tokens if token.special}
        if "" in self._tokens:
            raise ValueError("an added token has no name")
        names = sorted(self._tokens, key=len, reverse=True)
        self._names = re.compile("|".join(map(re.escape, names))) if names else None
        used = set("".join(names))
        self._hidden = next((char for char in map(chr, PRIVATE) if char not in used), "")
        if not self._hidden:
            raise ValueError("its added tokens have every private character")

    def parts(self, text: str, special: bool, marked: Marked | None = None) -> list[Found]:
        """Return the parts of a text; with ``special``, names of special tokens are those tokens: in ``marked``, the
        same text, those that its template wrote."""
        parts = list(self._parts(text, special))
        seen = text
        while marked is not None and (places := [p for p in self._forged(marked, parts) if seen[p] == text[p]]):
            chars = list(seen)
            for place in places:
                chars[place] = self._hidden
            seen = "".join(chars)
            parts = list(self._parts(seen, special))
        return parts

    def _parts(self, text: str, special: bool) -> Iterator[Found]:
        begun = 0
        for found in self._names.finditer(text) if self._names else ():
            token = self._tokens[found[0]]
            if token.special and not special:
                continue
            start, end = found.span()
            if token.before:
                start = next((at for at in range(start, begun, -1) if text[at - 1] not in SPACES), begun)
            if token.after:
                end = next((at for at in range(end, len(text)) if text[at] not in SPACES), len(text))
            if begun < start:
                yield Found(begun, start, None)
            yield Found(start, end, token.id)
            begun = end
        if begun < len(text):
            yield Found(begun, len(text), None)

    def _forged(self, marked: Marked, parts: Sequence[Found]) -> Iterator[int]:
        """Yield a place in each special token whose name the template did not write whole."""
        for part in parts:
            if part.id is not None and (name := self._special.get(part.id)) is not None:
                yield from marked.forged(name, part.start, part.end)
