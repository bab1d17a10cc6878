"""How an answer that is bound to a grammar can be ended from where it stands: a short run of bytes, kept up to date.

It knows bytes only, nothing of tokens. The first one is found by a search through what the grammar allows, cheapest
bytes first. Later steps of an answer mostly follow the one that is known, or leave it standing (the inside of a
string), or need a few bytes before they are back on it (an optional property), so the search is seldom a long one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llguidance import LLMatcher

END = 256  # the id of the end of an answer, after the bytes

_STATES = 20_000  # that one search looks at, of about 10 microseconds each
_WIDTH = 8  # states of one length that it goes on from
_PLACES = 8  # at which a state may try to join the known closing
_FEW = 16  # bytes, of which each is looked at
_KINDS = b"aA@.:-/,_"  # among more, those that patterns and formats are likely to ask for
_BYTES = tuple(bytes([byte]) for byte in range(END))


class _Way(NamedTuple):
    """Bytes that may come: how many of the steps changed nothing, and what may come before the last one.

    ``word``: the last step, where that was a word.
    """

    idle: int = 0
    data: bytes = b""
    before: bytes = b""
    word: bytes = b""


class Closing:
    """The closing of one answer: ``path``, which is of no use until ``find`` or ``advance`` has returned True.

    ``matcher`` stands where the answer does, over a vocabulary of the 256 bytes and ``END``. ``usable`` are the bytes,
    each as a bytes object, that a closing may have; ``words`` are made of them, and may be asked for by a pattern.
    """

    def __init__(self, matcher: LLMatcher, usable: frozenset[bytes], words: tuple[bytes, ...] = ()) -> None:
        self._matcher = matcher
        self._usable = usable
        self._words = words
        self._ahead = b""  # where the matcher stands, as seen from the answer
        self.path = b""
        self._masks: list[bytes] = []  # what may come before each byte of the path
        self._before = (0, self.path, self._masks)

    def copy(self) -> Closing:
        """Return the same for another answer."""
        other = Closing(self._matcher.deep_copy(), self._usable, self._words)
        other.path, other._masks = self.path, self._masks
        return other

    def allows(self, data: bytes) -> bool:
        """Say whether the answer may go on with these bytes."""
        return self._matcher.validate_tokens(list(data)) == len(data)

    def advance(self, data: bytes) -> bool:
        """Go on with bytes that the grammar allows. Where no closing is found behind them, stay, and return False."""
        self._before = (len(data), self.path, self._masks)
        self._matcher.consume_tokens(list(data))
        if self.path.startswith(data):
            self.path, self._masks = self.path[len(data) :], self._masks[len(data) :]
        elif not self.find():
            self.retreat()
            return False
        return True

    def retreat(self) -> None:
        """Take the last ``advance`` back."""
        size, self.path, self._masks = self._before
        self._matcher.rollback(size)

    def find(self) -> bool:
        """Look for a closing from here, of its own or joining the one that was known. False where none is found."""
        return self._search(_likely) or self._search(_all)

    def _search(self, steps: Callable[[bytes, bytes], tuple[bytes, ...]]) -> bool:
        """Look at what may come, all ways of one length before any that is longer."""
        ways, states = {0: [_Way()]}, 0
        while ways and states < _STATES:
            seen: set[tuple[bytes, bytes]] = set()
            for way in sorted(ways.pop(min(ways)), key=attrgetter("idle")):
                if len(seen) == _WIDTH:
                    break
                states += 1
                self._look(way.data)
                mask = self._matcher.compute_bitmask()
                if self._matcher.is_error():  # a limit of the parser: nothing can be said any more
                    return False
                if (mask, way.word) in seen:  # after as many bytes: most likely the same state
                    continue
                seen.add((mask, way.word))
                place = self._joins(mask)
                if place is not None:
                    self._take(way.data, place)
                    return True
                for longer in self._longer(way, mask, steps(mask, way.before)):
                    ways.setdefault(len(longer.data), []).append(longer)
        self._look(b"")
        return False

    def _longer(self, way: _Way, mask: bytes, nexts: tuple[bytes, ...]) -> Iterator[_Way]:
        """Return the ways that go on from this one, where the matcher stands."""
        wide = len(nexts) > 3  # not only closers, or two digits
        idle = way.idle + (wide and mask == way.before)
        for word in self._words if wide else ():
            if mask[word[0] // 8] >> word[0] % 8 & 1 and self.allows(word):
                yield _Way(idle, way.data + word, mask, word)
        for byte in nexts:
            if byte in self._usable:
                yield _Way(idle, way.data + byte, mask)

    def _take(self, way: bytes, place: int) -> None:
        """Make this way, and what is known from a place on, the closing."""
        masks = []
        for length in range(len(way)):
            self._look(way[:length])
            masks.append(self._matcher.compute_bitmask())
        self._look(b"")
        self._masks = masks + self._masks[place:]
        self.path = way + self.path[place:]

    def _joins(self, mask: bytes) -> int | None:
        """Return the place of the known closing from which it ends the answer also here; its end where none is needed.

        Equal masks are a hint that two states are alike, which is then tried.
        """
        if mask[END // 8] & 1:
            return len(self.path)
        alike = (place for place, other in enumerate(self._masks) if place and other == mask)
        for place in islice(chain((0,), alike), _PLACES):
            rest = self.path[place:]
            if rest and self._matcher.validate_tokens([*rest, END]) == len(rest) + 1:
                return place
        return None

    def _look(self, way: bytes) -> None:
        """Put the matcher behind these bytes after the answer."""
        shared = _shared(way, self._ahead)
        if shared < len(self._ahead):
            self._matcher.rollback(len(self._ahead) - shared)
        if shared < len(way):
            self._matcher.consume_tokens(list(way[shared:]))
        self._ahead = way


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes two ways have in common at their beginning."""
    shorter = min(len(one), len(other))
    if one[:shorter] == other[:shorter]:
        return shorter
    return next(index for index in range(shorter) if one[index] != other[index])


@lru_cache(4096)
def _all(mask: bytes, before: bytes) -> tuple[bytes, ...]:
    """Return the bytes of a mask, each as a step."""
    return tuple(_BYTES[byte] for byte in range(END) if mask[byte // 8] >> byte % 8 & 1)


@lru_cache(4096)
def _likely(mask: bytes, before: bytes) -> tuple[bytes, ...]:
    """Return the bytes of a mask that are likely to lead to an end soon, or stand for others that are as good.

    Closers go before others, but not where the last step has changed nothing: there they are ordinary characters.
    """
    allowed = _all(mask, before)
    closers = tuple(byte for byte in allowed if byte in (b'"' if len(allowed) > _FEW else b'"]}'))
    if closers and mask != before:
        return closers
    digits = tuple(byte for byte in allowed if byte.isdigit())[:2]
    others = tuple(byte for byte in allowed if not byte.isdigit() and not byte.isspace())
    if len(others) > _FEW:
        others = tuple(byte for byte in others if byte in _KINDS) or others[:2]
    return digits + others or allowed[:1]
