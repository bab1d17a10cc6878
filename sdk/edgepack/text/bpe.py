"""Byte-pair encoding over the tables of a bundle: the words of a text to the ids of their tokens.

Always the pair of the lowest rank is merged, of equal ones the first (R. Sennrich et al., "Neural Machine Translation
of Rare Words with Subword Units", 2016). Words come from ``edgepack.text.words``, and where a tokenizer needs the
tokenizers library for them, from ``edgepack.text.library``.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import lru_cache
from heapq import heapify, heappop, heappush
from typing import Protocol

from edgepack.text.tables import Tables, damaged

_WORDS = 1 << 14  # whose tokens are remembered
_PAIRS = 1 << 14
_GONE = 0xFFFF_FFFF  # no token's id: joined to the one before, or the end of the word

_Pair = tuple[int, int, int, int, int]  # rank, place, left, right, joined: in the order in which they are merged


class _Front(Protocol):
    def words(self, text: str, special: bool) -> Iterator[tuple[int, ...]]: ...


class Bpe:
    """The encoder of one tokenizer. It may be used from several threads. Raises ``BundleDamagedError``."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._front = _front(tables)
        self._word = lru_cache(_WORDS)(self._merged)
        self._joined = lru_cache(_PAIRS)(self._looked_up)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; with ``special``, names of special tokens in it are those tokens: in a marked text
        those that its template wrote."""
        return [id for word in self._front.words(text, special) for id in self._word(word)]

    def text(self, id: int) -> bytes:
        """Return a token as the vocabulary writes it, in UTF-8; nothing for an id without one."""
        return self._tables.text(id)

    def _merged(self, word: tuple[int, ...]) -> Sequence[int]:
        if len(word) > 1 and (whole := self._whole(b"".join(map(self._tables.text, word)))) is not None:
            return [whole]
        symbols = [*word, _GONE]
        before, after = list(range(-1, len(word))), list(range(1, len(word) + 2))
        pairs = [pair for place in range(len(word) - 1) if (pair := self._pair(place, *word[place : place + 2]))]
        heapify(pairs)
        while pairs:
            _, place, left, right, joined = heappop(pairs)
            second = after[place]
            if (symbols[place], symbols[second]) != (left, right):  # one of them is in another token by now
                continue
            symbols[place], symbols[second] = joined, _GONE
            after[place] = third = after[second]
            before[third] = place
            for first, next in ((before[place], place), (place, third)):
                if first >= 0 and (pair := self._pair(first, symbols[first], symbols[next])):
                    heappush(pairs, pair)
        return [symbol for symbol in symbols if symbol != _GONE]

    def _pair(self, place: int, left: int, right: int) -> _Pair | None:
        found = self._joined(left << 32 | right)
        return found and (found[0], place, left, right, found[1])

    def _looked_up(self, key: int) -> tuple[int, int] | None:
        tables = self._tables
        found = bisect_left(tables.pairs, key)
        if found == len(tables.pairs) or tables.pairs[found] != key:
            return None
        return tables.ranks[found], tables.joined[found]

    def _whole(self, text: bytes) -> int | None:
        """Return the token of a word where the tokenizer takes whole ones before any merge."""
        ids = self._tables.sorted
        found = bisect_left(ids, text, key=self._tables.text)
        return ids[found] if found < len(ids) and self._tables.text(ids[found]) == text else None


def _front(tables: Tables) -> _Front:
    if tables.front is None:
        from edgepack.text.library import LibraryWords

        return LibraryWords(tables)
    from edgepack.text.words import Words

    try:
        return Words(tables.front)
    except (ValueError, TypeError, re.error) as error:
        raise damaged(str(error)) from None
