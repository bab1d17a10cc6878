"""Byte-pair encoding over the tables of a bundle: the words of a text to the ids of their tokens.

The tokenizers library takes added tokens out, normalises, splits into words and does the first merges by rank; which is
where the algorithm of byte-pair encoding is, too, when it has done all that it can with merges of those ranks. The
others are done here, from that state on: always the pair of the lowest rank, of equal ones the first (R. Sennrich et
al., "Neural Machine Translation of Rare Words with Subword Units", 2016).
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from heapq import heapify, heappop, heappush
from threading import Lock

from edgepack.text.tables import Tables, damaged

_WORDS = 1 << 14  # whose tokens are remembered
_SPACE = "\u2581".encode()

_GONE = 0xFFFF_FFFF  # no token's id: joined to the one before, or the end of the word

_Pair = tuple[int, int, int, int, int]  # rank, place, left, right, joined: in the order in which they are merged


@contextmanager
def _library() -> Iterator[None]:
    """Turn what the tokenizers library raises into ``BundleDamagedError``: it has no class of its own for errors, and
    where Rust panics, one that is no ``Exception``."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise damaged(f"the tokenizers library says: {str(error).rstrip('.')}") from None
        raise


class Bpe:
    """The encoder of one tokenizer. It may be used from several threads. Raises ``BundleDamagedError``."""

    def __init__(self, tables: Tables) -> None:
        import tokenizers

        self._tables = tables
        with _library():
            self._native = tokenizers.Tokenizer.from_str(tables.rest)
            places = max(self._native.get_vocab(with_added_tokens=True).values(), default=-1)
        if places >= len(tables.ids):
            raise damaged(f"its remainder has {places + 1} tokens, of which {len(tables.ids)} have an id")
        self._lock = Lock()
        self._word = lru_cache(_WORDS)(self._merged)

    def encode(self, text: str, *, special: bool) -> list[int]:
        """Return the ids of a text; with ``special``, names of special tokens in it are those tokens."""
        with self._lock:  # a property of the shared object decides how the call treats special tokens
            self._native.encode_special_tokens = not special
            with _library():
                encoding = self._native.encode(text, add_special_tokens=False)
        ids = self._tables.ids
        symbols = [ids[place] for place in encoding.ids]
        return [id for word in self._words(symbols, encoding.word_ids) for id in self._word(word)]

    def text(self, id: int) -> bytes:
        """Return a token as the vocabulary writes it, in UTF-8; nothing for an id without one."""
        ends = self._tables.ends
        return bytes(self._tables.texts[ends[id - 1] if id else 0 : ends[id]]) if 0 <= id < len(ends) else b""

    def _words(self, symbols: Sequence[int], words: Sequence[int | None]) -> Iterator[tuple[int, ...]]:
        """Yield the symbols of each word; a text that no rule splits, where no merge can reach over."""
        start = 0
        for place in range(1, len(symbols)):
            if words[place] != words[place - 1] or self._splits(symbols[place - 1], symbols[place]):
                yield tuple(symbols[start:place])
                start = place
        yield tuple(symbols[start:])

    def _splits(self, left: int, right: int) -> bool:
        return self._tables.splits and self.text(right).startswith(_SPACE) and not self.text(left).endswith(_SPACE)

    def _merged(self, word: tuple[int, ...]) -> Sequence[int]:
        if len(word) > 1 and (whole := self._whole(b"".join(map(self.text, word)))) is not None:
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
        tables, key = self._tables, left << 32 | right
        found = bisect_left(tables.pairs, key)
        if found == len(tables.pairs) or tables.pairs[found] != key:
            return None
        return tables.ranks[found], place, left, right, tables.joined[found]

    def _whole(self, text: bytes) -> int | None:
        """Return the token of a word where the tokenizer takes whole ones before any merge."""
        ids = self._tables.sorted
        found = bisect_left(ids, text, key=self.text)
        return ids[found] if found < len(ids) and self.text(ids[found]) == text else None
