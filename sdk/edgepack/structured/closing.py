"""How an answer that is bound to a grammar can be ended from where it stands: a short run of bytes, kept up to date.

It knows bytes only, nothing of tokens. The first one is found by a search through what the grammar allows. Later
steps of an answer mostly follow the one that is known, or leave it standing (the inside of a string), or need a few
bytes before they are back on it (an optional property), so that a search is seldom a long one.

The search does not see the states of the grammar, only which bytes may come next: states with equal masks are taken to
be equal, and of many bytes a few are tried. Masks do not show how far a number is from a multiple, or that an address
has its dot: what the search misses is looked for at random, and made shorter. So a closing may be missed, or be longer
than another; what is found is valid.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from copy import copy
from functools import lru_cache
from itertools import chain, islice
from operator import attrgetter
from random import Random
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from llguidance import LLMatcher

BYTES = tuple(bytes([value]) for value in range(256))
END = 256  # the id of the end of an answer, after those of the bytes

_WORKS = (10_000, 100_000)  # of a search, and of one after it: bytes that the matcher moves by, and ways
_STATE = 20  # the work of looking at a state
_WIDTH = 8  # states that it goes on from at each step
_REACH = 16  # steps of the first ways at random
_PLACES = 8  # at which a state may try to join the known closing
_FEW = 16  # bytes, of which each is looked at
_KINDS = b'"aA@.:-/,_'  # among more, those that patterns and formats are likely to ask for


class _Way(NamedTuple):
    """Bytes that may come."""

    choices: int = 0  # steps at which there were others
    data: bytes = b""
    word: bytes = b""  # the last step, where it was more than a byte


class Closing:
    """The closing of one answer: ``path``, which is of no use until ``find`` or ``advance`` has returned True.

    ``matcher`` stands where the answer does, over a vocabulary of the 256 bytes and ``END``. ``usable`` are the bytes,
    each as a bytes object, that a closing may have. ``values`` are JSON values that may be asked for, the short ones
    first; ``words`` are what patterns may ask for. ``check`` is called at each step of a search, which it may end.
    """

    def __init__(
        self,
        matcher: LLMatcher,
        usable: frozenset[bytes],
        *,
        values: Iterable[str] = (),
        words: Iterable[str] = (),
        check: Callable[[], None] = lambda: None,
    ) -> None:
        self.matcher = matcher
        self._check = check
        self._usable = usable
        self._values = self._writable(values)
        self._words = self._writable(words)
        self._ahead = b""  # where the matcher stands, as seen from the answer
        self._last = b""  # the answer's last byte
        self.path = b""
        self._masks: list[bytes] = []  # what may come before each byte of the path
        self._before = (b"", self._last, self.path, self._masks)

    def copy(self) -> Closing:
        """Return the same for another answer."""
        other = copy(self)
        other.matcher, other._check = self.matcher.deep_copy(), lambda: None
        return other

    def allows(self, data: bytes) -> bool:
        """Say whether the answer may go on with these bytes."""
        return self.matcher.validate_tokens(list(data)) == len(data)

    def advance(self, data: bytes) -> bool:
        """Go on with bytes that the grammar allows. Where no closing is found behind them, stay, and return False."""
        self._before = (data, self._last, self.path, self._masks)
        self.matcher.consume_tokens(list(data))
        self._last = data[-1:] or self._last
        if self.path.startswith(data):
            self.path, self._masks = self.path[len(data) :], self._masks[len(data) :]
        elif not self.find():
            self.retreat()
            return False
        return True

    def retreat(self) -> None:
        """Take the last ``advance`` back."""
        data, self._last, self.path, self._masks = self._before
        self.matcher.rollback(len(data))

    def find(self) -> bool:
        """Look for a closing from here, of its own or joining the one that was known. False where none is found."""
        found = any(self._search(most) or self._wander(most) for most in _WORKS)
        self._look(b"")
        return found

    def _search(self, most: int) -> bool:
        """Look at what may come, all ways of one number of steps before any that takes more."""
        ways, work = [_Way()], 0
        while ways and work < most:
            longer: list[_Way] = []
            seen: set[tuple[bytes, bytes]] = set()
            for way in sorted(ways, key=attrgetter("choices")):
                if len(seen) == _WIDTH:
                    break
                self._check()
                work += _STATE + self._look(way.data)
                mask = self.matcher.compute_bitmask()
                if self.matcher.is_error():  # a limit of the parser: nothing can be said any more
                    return False
                if (mask, way.word) in seen:  # after as many steps: most likely the same state
                    continue
                seen.add((mask, way.word))
                place = self._joins(mask)
                if place is not None:
                    self._take(way.data, place)
                    return True
                longer += self._longer(way, mask, self._likely(mask))
            work += len(longer)
            ways = longer
        return False

    def _wander(self, most: int) -> bool:
        """Go one way at random, and another where it does not end: the longer this has taken, the further."""
        random, work = Random(0), 0  # the same answer is closed in the same way
        while work < most:
            ways = [_Way()]
            for _ in range(_REACH + work // (_STATE * _REACH)):
                if not ways:
                    break
                self._check()
                way = random.choice(ways)
                work += _STATE + self._look(way.data)
                mask = self.matcher.compute_bitmask()
                if self.matcher.is_error():
                    return False
                place = self._joins(mask)
                if place is not None:
                    self._take(self._shorter(way.data, place), place)
                    return True
                ways = list(self._longer(way, mask, random.choice((self._likely, _all))(mask)))
        return False

    def _likely(self, mask: bytes) -> tuple[bytes, ...]:
        """Return the bytes of a mask that are worth a look before all others."""
        return _likely_in_json(mask) if self._values else _likely(mask)

    def _longer(self, way: _Way, mask: bytes, nexts: tuple[bytes, ...]) -> Iterator[_Way]:
        """Return the ways that go on from this one, where the matcher stands."""
        choices = way.choices + (len(nexts) > 1)
        if (way.data or self._last)[-1:] in b":[, \n\r\t":  # or none: a value may begin here
            value = next((value for value in self._values if self._fits(value, mask)), None)
            if value is not None:
                yield _Way(choices, way.data + value, value)
                return
        for word in self._words if len(nexts) > 3 else ():  # more than closers, or two digits
            if self._fits(word, mask):
                yield _Way(choices, way.data + word, word)
        for byte in nexts:
            if byte in self._usable:
                yield _Way(choices, way.data + byte)

    def _fits(self, text: bytes, mask: bytes) -> bool:
        return bool(mask[text[0] // 8] >> text[0] % 8 & 1) and self.allows(text)

    def _writable(self, texts: Iterable[str]) -> tuple[bytes, ...]:
        words = (text.encode() for text in texts)
        return tuple(word for word in words if all(BYTES[value] in self._usable for value in word))

    def _take(self, way: bytes, place: int) -> None:
        """Make this way, and what is known from a place on, the closing."""
        masks = []
        for length in range(len(way)):
            self._look(way[:length])
            masks.append(self.matcher.compute_bitmask())
        self._masks = masks + self._masks[place:]
        self.path = way + self.path[place:]

    def _shorter(self, way: bytes, place: int) -> bytes:
        """Return a way, which leads to a place, without the parts that it can do without."""
        self._look(b"")
        rest, size, work = self.path[place:], len(way), 0
        while size and work < _WORKS[-1]:
            for start in reversed(range(len(way) - size + 1)):
                without = way[:start] + way[start + size :]
                self._check()
                work += len(without) + len(rest)
                if self._ends(without + rest):
                    way = without
            size = size * 3 // 4
        return way

    def _ends(self, data: bytes) -> bool:
        """Say whether the answer is a whole one with these bytes, from where the matcher stands."""
        return self.matcher.validate_tokens([*data, END]) == len(data) + 1

    def _joins(self, mask: bytes) -> int | None:
        """Return the place of the known closing from which it ends the answer also here; its end where none is needed.

        Equal masks are a hint that two states are alike, which is then tried.
        """
        if mask[END // 8] & 1:
            return len(self.path)
        alike = (place for place, other in enumerate(self._masks) if place and other == mask)
        for place in islice(chain((0,), alike), _PLACES):
            rest = self.path[place:]
            if rest and self._ends(rest):
                return place
        return None

    def _look(self, way: bytes) -> int:
        """Put the matcher behind these bytes after the answer. Return how many bytes it had to move."""
        shared = _shared(way, self._ahead)
        moved = len(self._ahead) + len(way) - 2 * shared
        if shared < len(self._ahead):
            self.matcher.rollback(len(self._ahead) - shared)
        if shared < len(way):
            self.matcher.consume_tokens(list(way[shared:]))
        self._ahead = way
        return moved


def _shared(one: bytes, other: bytes) -> int:
    """Return how many bytes two ways have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@lru_cache(4096)
def _all(mask: bytes) -> tuple[bytes, ...]:
    """Return the bytes of a mask, each as a step."""
    return tuple(BYTES[byte] for byte in range(END) if mask[byte // 8] >> byte % 8 & 1)


@lru_cache(4096)
def _likely(mask: bytes) -> tuple[bytes, ...]:
    """Return the bytes of a mask that are likely to lead to an end soon, or stand for others that are as good."""
    allowed = _all(mask)
    if len(allowed) <= _FEW and (closers := tuple(byte for byte in allowed if byte in b'"]}')):
        return closers
    digits = tuple(byte for byte in allowed if byte.isdigit())[:2]
    others = tuple(byte for byte in allowed if not byte.isdigit() and not byte.isspace())
    if len(others) > _FEW:
        others = tuple(byte for byte in others if byte in _KINDS) or others[:2]
    return digits + others or allowed[:1]


def _likely_in_json(mask: bytes) -> tuple[bytes, ...]:
    """Return the same where much may come only inside of a string, which a quote ends."""
    allowed = _all(mask)
    return (b'"',) if len(allowed) > _FEW and b'"' in allowed else _likely(mask)
