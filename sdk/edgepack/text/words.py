"""From a text to the words that byte-pair encoding works on, without the tokenizers library.

It is made of three things, each of which the build takes from tokenizer.json: added tokens (``edgepack.text.added``),
changes and steps (``edgepack.text.splitting``). What a tokenizer does beyond that is left to the library
(``edgepack.text.library``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import msgspec

from edgepack.text.added import Added, Finder
from edgepack.text.marks import Marked
from edgepack.text.splitting import Change, Splitter, Step

MOST_GROWTH = 64


class Front(msgspec.Struct, frozen=True):
    """What comes before the merges. Ids are those of the model.

    Added tokens are found in the text (``added``), and in what the ``changes`` make of the parts between them
    (``normalized``); then come the changes ``before`` the ``steps``. ``starts`` (u32) and ``symbols`` are the classes
    of characters. ``letters`` are the tokens of single characters, none where each byte is one; ``bytes`` is the token
    of each byte, -1 for none.
    """

    added: list[Added]
    normalized: list[Added]
    changes: list[Change]
    before: list[Change]
    steps: list[Step]
    starts: memoryview
    symbols: str
    letters: dict[str, int]
    bytes: list[int]

    def ids(self) -> Iterable[int]:
        """Yield every id that it may give."""
        yield from (token.id for token in (*self.added, *self.normalized))
        yield from self.letters.values()
        yield from (id for id in self.bytes if id >= 0)


class Words:
    """Makes words of texts. Raises ``ValueError`` for a front that fits no text."""

    def __init__(self, front: Front) -> None:
        if len(front.bytes) != 256 or any(len(letter) != 1 for letter in front.letters):
            raise ValueError("its bytes or its letters are none")
        if front.changes and any(token.special for token in front.normalized):
            raise ValueError("a special token is looked for in what the text was changed to")
        growth = math.prod(len(change.new) or 1 for change in (*front.changes, *front.before))
        if growth > MOST_GROWTH:
            raise ValueError(f"it may make a text more than {MOST_GROWTH} times as long")
        self._front = front
        self._added, self._normalized = Finder(front.added), Finder(front.normalized)
        self._splitter = Splitter(front.steps, front.starts, front.symbols)

    def words(self, text: str, special: bool) -> Iterator[tuple[int, ...]]:
        """Yield the words of a text as the tokens of their letters, and each added token as a word of its own."""
        plain, marked = (text.plain, text) if isinstance(text, Marked) and special else (str.__str__(text), None)
        for part in self._added.parts(plain, special, marked):
            if part.id is not None:
                yield (part.id,)
            else:
                inside = None if marked is None or self._front.changes else marked[part.start : part.end]
                yield from self._inside(plain[part.start : part.end], special, inside, part.start == 0)

    def _inside(self, text: str, special: bool, marked: Marked | None, first: bool) -> Iterator[tuple[int, ...]]:
        for change in self._front.changes:
            text = change.of(text, first)
        for part in self._normalized.parts(text, special, marked):
            if part.id is not None:
                yield (part.id,)
                continue
            piece = text[part.start : part.end]
            for change in self._front.before:
                piece = change.of(piece, first and part.start == 0)
            yield from map(self._letters, self._splitter.words(piece))

    def _letters(self, word: str) -> tuple[int, ...]:
        letters, bytes_ = self._front.letters, self._front.bytes
        if not letters:
            return tuple(id for byte in word.encode() if (id := bytes_[byte]) >= 0)
        found: list[int] = []
        for letter in word:
            found += [letters[letter]] if letter in letters else [bytes_[byte] for byte in letter.encode()]
        return tuple(found)
