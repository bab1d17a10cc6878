"""How a tokenizer makes words of a text, in a form that needs no library: changes, then expressions over classes.

An expression for words asks of a character only which classes it belongs to, such as ``\\p{L}``. The classes were
asked of the tokenizers library when the bundle was built (``edgepack.text.expressions``), so that they are the same
with every Python, whatever its tables of Unicode. What is left here is an expression over a handful of symbols.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Iterator
from itertools import pairwise
from typing import Literal

import msgspec

_FIRST = 0x100  # of the symbols, none of which means anything to an expression
_MOST = 256  # symbols
_REMEMBERED = 1 << 14  # characters whose symbol is known
_DEEP = 4
_UNBOUNDED = 2
_REPEATS = 64


class Item(msgspec.Struct, frozen=True, array_like=True):
    """A part of an expression: one of ``symbols``, or one of ``choices``, from ``least`` to ``most`` times (0: any).

    With ``ahead`` it takes nothing: one of ``symbols`` must follow, none ("not"), or one or nothing at all ("end").
    """

    symbols: str = ""
    least: int = 1
    most: int = 1
    possessive: bool = False
    ahead: Literal["", "is", "not", "end"] = ""
    choices: list[list[Item]] = []


class Step(msgspec.Struct, frozen=True, array_like=True):
    """Takes a text apart at what an expression finds, the first of ``choices`` that fits at each place.

    ``keeps``: "all", what is found and what lies between; "found"; "between"; "before", where what is found ends the
    part before it; or "after", where it begins the part after it.
    """

    choices: list[list[Item]]
    keeps: Literal["all", "found", "between", "before", "after"] = "all"


class Change(msgspec.Struct, frozen=True, array_like=True):
    """A change of a text: "nfc", "replace" of ``old`` by ``new``, or ``new`` in front: always ("prepend"), where the
    text does not begin with it ("begin"), or then only at the beginning of all ("open")."""

    kind: Literal["nfc", "replace", "prepend", "begin", "open"]
    old: str = ""
    new: str = ""

    def of(self, text: str, first: bool) -> str:
        """Return the changed text; ``first`` says that it begins a whole one."""
        if self.kind == "nfc":
            return unicodedata.normalize("NFC", text)
        if self.kind == "replace":
            return text.replace(self.old, self.new)
        wanted = self.kind == "prepend" or (not text.startswith(self.new) and (first or self.kind == "begin"))
        return self.new + text if wanted and text else text


def expression(choices: list[list[Item]]) -> str:
    """Return the regular expression for choices. Raises ``ValueError`` for one that could take for ever: a repetition
    of what repeats, or of more than two parts one after the other."""
    return "|".join(map(_branch, choices))


def _branch(items: list[Item], depth: int = 0) -> str:
    if depth > _DEEP or sum(not item.most for item in items) > _UNBOUNDED:
        raise ValueError("its expression for words repeats too much")
    return "".join(_part(item, depth) for item in items)


def _part(item: Item, depth: int) -> str:
    if not 0 <= item.least <= _REPEATS or not 0 <= item.most <= _REPEATS or bool(item.symbols) == bool(item.choices):
        raise ValueError("its expression for words is none")
    if item.choices:
        inner = "|".join(_branch(each, depth + 1) for each in item.choices)
        repeats = any(part.most != 1 for each in item.choices for part in each)
        if item.ahead or item.possessive or item.most != 1 or repeats:
            raise ValueError("its expression for words repeats what repeats")
        return f"(?:{inner})" + ("" if item.least else "?")
    one = f"[{re.escape(item.symbols)}]"
    if item.ahead:
        return {"is": f"(?={one})", "not": f"(?!{one})", "end": rf"(?={one}|\Z)"}[item.ahead]
    if (item.least, item.most) == (1, 1):
        return one
    return f"{one}{{{item.least},{item.most or ''}}}{'+' if item.possessive else ''}"


class Classes(dict[int, str]):
    """The symbol of each character, for ``str.translate``: of the last of ``starts`` that does not lie behind it."""

    def __init__(self, starts: memoryview, symbols: str) -> None:
        if not symbols or len(starts) != len(symbols) or starts[0] or list(starts) != sorted(set(starts)):
            raise ValueError("its classes of characters are not in order")
        self._starts, self._symbols = starts, symbols

    def __missing__(self, character: int) -> str:
        symbol = self._symbols[bisect_right(self._starts, character) - 1]
        if len(self) < _REMEMBERED:
            self[character] = symbol
        return symbol


class Splitter:
    """The steps of one tokenizer. Raises ``ValueError`` for what is no such step."""

    def __init__(self, steps: list[Step], starts: memoryview, symbols: str) -> None:
        self._classes = Classes(starts, symbols)
        self._steps = [(re.compile(expression(step.choices)), step.keeps) for step in steps]
        if any(found.match("") for found, _ in self._steps):
            raise ValueError("its expression for words finds nothing")

    def words(self, text: str) -> list[str]:
        """Return the words of a text."""
        words = [text]
        for found, keeps in self._steps:
            words = [word for part in words for word in _parts(part, part.translate(self._classes), found, keeps)]
        return words


def _parts(text: str, symbols: str, expression: re.Pattern[str], keeps: str) -> Iterator[str]:
    spans = [found.span() for found in expression.finditer(symbols)]
    if keeps == "found":
        yield from (text[start:end] for start, end in spans)
        return
    if keeps == "before":
        edges = [0, *(end for _, end in spans), len(text)]
    elif keeps == "after":
        edges = [0, *(start for start, _ in spans), len(text)]
    else:
        edges = [0, *(edge for span in spans for edge in span), len(text)]
    every = 2 if keeps == "between" else 1
    yield from (text[start:end] for start, end in list(pairwise(edges))[::every] if start < end)


def symbol(place: int) -> str:
    """Return the symbol of a class. Raises ``ValueError`` where there are too many."""
    if place >= _MOST:
        raise ValueError("too many classes of characters")
    return chr(_FIRST + place)
