"""Which characters of a prompt its chat template wrote, so that nobody else's can name a control token.

What a template spells out is marked as its own; all else that gets into a prompt is said by others: contents, tools,
variables. The marks go through the operations by which templates put texts together. An operation that is not known
here returns a text without marks, which counts as said: what a user says never becomes the template's.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import SupportsIndex

_WRITTEN, _SAID = "w", "s"

PRIVATE = range(0xF0000, 0x110000)
"""Characters of no meaning, one of which may stand in the place of one that is hidden."""


class Marked(str):
    """A text that knows of each of its characters whether the template wrote it. It compares and hashes as a str."""

    __slots__ = ("_marks",)
    _marks: str

    def __new__(cls, text: str = "", marks: str | None = None) -> Marked:
        """Return a text with a mark for each character; without marks all of it is said."""
        made = super().__new__(cls, text)
        made._marks = _SAID * len(made) if marks is None else marks
        return made

    @classmethod
    def of_runs(cls, text: str, runs: Sequence[int]) -> Marked:
        """Return the text whose ``runs`` these are."""
        return cls(text, "".join((_SAID if place % 2 else _WRITTEN) * length for place, length in enumerate(runs)))

    @property
    def runs(self) -> list[int]:
        """How many characters are written, said, written and so on: what a message to another process can carry."""
        lengths = [len(list(run)) for _, run in groupby(self._marks)]
        return [0, *lengths] if self._marks.startswith(_SAID) else lengths

    @property
    def plain(self) -> str:
        """The same text without marks."""
        return str.__str__(self)

    def said(self, start: int, end: int) -> list[int]:
        """Return the places from ``start`` up to ``end`` whose characters the template did not write."""
        if _SAID not in self._marks[start:end]:
            return []
        return [place for place in range(start, end) if self._marks[place] == _SAID]

    def forged(self, name: str, start: int, end: int) -> Iterator[int]:
        """Yield a place that is to be hidden so that no ``name`` is read between two places: nothing where there is one
        that the template wrote whole. Beside it may stand the white space that its token takes."""
        if (at := self.find(name, start, end)) >= 0:
            start, end = at, at + len(name)
        if said := self.said(start, end):
            yield next((place for place in said if not str.__getitem__(self, place).isspace()), said[0])

    # What templates do with texts. ``str`` of a text leaves it as it is, so that it is printed with its marks.

    def __str__(self) -> str:
        return self

    def __getitem__(self, key: SupportsIndex | slice) -> Marked:
        return Marked(super().__getitem__(key), self._marks[key])

    def __add__(self, other: str) -> Marked:
        if not isinstance(other, str) or hasattr(other, "__html__"):
            return NotImplemented
        return concat((self, other))

    def __radd__(self, other: str) -> Marked:
        return concat((other, self)) if isinstance(other, str) else NotImplemented

    def __mul__(self, count: SupportsIndex) -> Marked:
        return Marked(super().__mul__(count), self._marks * count)

    __rmul__ = __mul__

    def join(self, pieces: Iterable[str]) -> Marked:
        each = [part for piece in pieces for part in (self, piece)]
        return concat(each[1:])

    def lstrip(self, chars: str | None = None) -> Marked:
        return self[len(self) - len(super().lstrip(chars)) :]

    def rstrip(self, chars: str | None = None) -> Marked:
        return self[: len(super().rstrip(chars))]

    def strip(self, chars: str | None = None) -> Marked:
        return self.lstrip(chars).rstrip(chars)

    def removeprefix(self, prefix: str) -> Marked:
        return self[len(self) - len(super().removeprefix(prefix)) :]

    def removesuffix(self, suffix: str) -> Marked:
        return self[: len(super().removesuffix(suffix))]

    def split(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().split(sep, maxsplit), len(sep or ""))

    def rsplit(self, sep: str | None = None, maxsplit: SupportsIndex = -1) -> list[str]:
        return self._located(super().rsplit(sep, maxsplit), len(sep or ""))

    def splitlines(self, keepends: bool = False) -> list[str]:
        return self._located(super().splitlines(keepends), 0)

    def replace(self, old: str, new: str, count: SupportsIndex = -1) -> str:
        return Marked(new, _marks(new)).join(self.split(old, count)) if old else super().replace(old, new, count)

    def upper(self) -> str:
        return self._as_long(super().upper())

    def lower(self) -> str:
        return self._as_long(super().lower())

    def capitalize(self) -> str:
        return self._as_long(super().capitalize())

    def _as_long(self, text: str) -> str:
        return Marked(text, self._marks) if len(text) == len(self) else text

    def _located(self, pieces: Iterable[str], gap: int) -> list[str]:
        """Return pieces of this text, which follow one another at a distance of ``gap`` or of white space, marked."""
        found: list[str] = []
        end = -gap
        for piece in pieces:
            start = self.find(piece, end + gap)
            end = start + len(piece)
            found.append(self[start:end])
        return found


def concat(pieces: Iterable[str]) -> Marked:
    """Return the pieces as one text; those without marks are said."""
    each = list(pieces)
    return Marked("".join(each), "".join(map(_marks, each)))


@lru_cache(maxsize=4096)
def written(text: str) -> Marked:
    """Return a text that the template wrote."""
    return Marked(text, _WRITTEN * len(text))


def _marks(text: str) -> str:
    return text._marks if isinstance(text, Marked) else _SAID * len(text)
