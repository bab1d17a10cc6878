"""The expressions by which a tokenizer.json makes words of a text, read once, when its bundle is built.

They are written for Oniguruma, whose tables of Unicode are the library's own. So an expression is read as far as its
structure goes, and for each part that stands for one character, such as ``\\p{L}``, the library is asked which
characters it fits (Oniguruma's doc/RE, Ruby syntax). What is not known here raises ``Unknown``.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache

import msgspec
import numpy as np

from edgepack.text.splitting import Item, Step, symbol

Bounds = tuple[int, ...]
"""A set of characters: where it begins and ends, in turn, ascending."""

# Each stands for itself and all up to the next; what lies between is not assigned, or private, and alike.
_POINTS = (*range(0xD800), *range(0xE000, 0x33481), *range(0xE0000, 0xE1001), 0xF0000, 0x110000)
_ESCAPES = {"r": "\r", "n": "\n", "t": "\t", "f": "\f", "v": "\v"}
_KINDS = re.compile(r"\\(?:[pP]\{\^?\w+\}|[sSdDwW])")
_COUNT = re.compile(r"\{(\d+)(,?)(\d*)\}")
# What a case-insensitive Oniguruma takes for one character (Unicode's CaseFolding.txt, status F, in ASCII).
_FOLDS = re.compile("ff|fi|fl|ss|st", re.IGNORECASE)


class Unknown(Exception):  # noqa: N818 - no fault: the library is then asked on devices, too
    """A tokenizer does what is not known here."""


class Alphabet:
    """Collects the parts that stand for one character, and makes classes of them: characters that all treat alike."""

    def __init__(self) -> None:
        self._sets: dict[Bounds, str] = {}

    def part(self, bounds: Bounds) -> str:
        """Return what stands for a set of characters until ``classes`` is known."""
        return self._sets.setdefault(bounds, chr(len(self._sets)))

    def classes(self) -> tuple[list[int], str, dict[str, str]]:
        """Return where the classes begin, their symbols, and the symbols of each part."""
        edges = sorted({0}.union(*self._sets))
        starts, symbols, known = [], "", dict[tuple[bool, ...], str]()
        for edge in edges:
            member = tuple(bisect_right(bounds, edge) % 2 == 1 for bounds in self._sets)
            try:
                mark = known.setdefault(member, symbol(len(known)))
            except ValueError as error:
                raise Unknown(str(error)) from None
            if not symbols or symbols[-1] != mark:
                starts.append(edge)
                symbols += mark
        parts = {
            part: "".join(mark for member, mark in known.items() if member[place])
            for place, part in enumerate(self._sets.values())
        }
        return starts, symbols, parts


def settled(step: Step, parts: dict[str, str]) -> Step:
    """Return a step with symbols in the place of its parts. Raises ``Unknown`` for one that fits no character."""

    def branch(items: list[Item]) -> list[Item]:
        return [
            msgspec.structs.replace(
                item, symbols=parts[item.symbols] if item.symbols else "", choices=[*map(branch, item.choices)]
            )
            for item in items
        ]

    choices = [branch(items) for items in step.choices]
    if any(not item.symbols and not item.choices for items in choices for item in items):
        raise Unknown("a part of an expression fits no character")
    return Step(choices, step.keeps)


@lru_cache(256)
def asked(expression: str) -> Bounds:
    """Return which characters an expression for one fits, by the library."""
    from tokenizers import Regex, pre_tokenizers

    splitting = pre_tokenizers.Split(Regex(f"(?:{expression})+"), "removed")
    others = [span for _, span in splitting.pre_tokenize_str(_every())]
    edges = [0, *(edge for span in others for edge in span), len(_POINTS) - 1]
    return _bounds(zip(edges[::2], edges[1::2], strict=True))


@lru_cache(4)
def asked_of(kind: str) -> Bounds:
    """Return which characters a kind of pre-tokenizer, "Digits" or "Punctuation", takes out."""
    from tokenizers import pre_tokenizers

    kinds = {"Digits": pre_tokenizers.Digits(False), "Punctuation": pre_tokenizers.Punctuation("contiguous")}
    runs = [span for _, span in kinds[kind].pre_tokenize_str(_every())]
    return _bounds(runs[1::2])  # the first character, U+0000, is none


def _every() -> str:
    return "".join(map(chr, _POINTS[:-1]))


def _bounds(spans: Iterable[tuple[int, int]]) -> Bounds:
    edges = np.array([(_POINTS[start], _POINTS[end]) for start, end in spans if start < end]).reshape(-1)
    return tuple(edges.tolist())


class Reader:
    """Reads one expression. Raises ``Unknown``."""

    def __init__(self, text: str, alphabet: Alphabet) -> None:
        self._text, self._alphabet = text, alphabet
        self._at = 0

    def read(self) -> list[list[Item]]:
        """Return the choices of the whole expression."""
        found = self._choices(folded=False)
        if self._at < len(self._text):
            raise Unknown("a bracket too much")
        return found

    def _choices(self, *, folded: bool) -> list[list[Item]]:
        branches: list[list[Item]] = [[]]
        while self._at < len(self._text) and self._text[self._at] != ")":
            if self._taken("|"):
                branches.append([])
            else:
                branches[-1].append(self._item(folded))
        return branches

    def _item(self, folded: bool) -> Item:
        if self._taken("(?:"):
            return self._group(folded=folded)
        if self._taken("(?i:"):
            return self._group(folded=True)
        for opening, ahead in (("(?=", "is"), ("(?!", "not")):
            if self._taken(opening):
                part = self._character(folded)
                self._expect(")")
                return Item(part, ahead=ahead)  # type: ignore[arg-type]
        if self._taken("$"):  # the end of a line
            return Item(self._alphabet.part((10, 11)), ahead="end")
        part = self._character(folded)
        least, most, possessive = self._count()
        return Item(part, least, most, possessive)

    def _group(self, *, folded: bool) -> Item:
        begun = self._at
        inner = self._choices(folded=folded)
        if folded and _FOLDS.search(self._text[begun : self._at]):
            raise Unknown("letters that may be one")
        self._expect(")")
        least, most, possessive = self._count()
        if most != 1 or possessive:
            raise Unknown("a repeated group")
        return Item(choices=inner, least=least)

    def _character(self, folded: bool) -> str:
        """Return the part for what stands for one character here."""
        at, text = self._at, self._text
        if at == len(text) or text[at] in "^()|?*+":
            raise Unknown(f"{text[at : at + 2]!r} where a character is looked for")
        if found := _KINDS.match(text, at):
            self._at = found.end()
            return self._asked(found[0], folded)
        if text[at] == "[":
            self._at = _end_of_class(text, at)
            inner = text[at : self._at]
            if folded and not re.fullmatch(r"\[[A-Za-z0-9']+\]", inner):
                raise Unknown("a class of any case")
            return self._alphabet.part(asked(f"(?i:{inner})" if folded else inner))
        if text[at] == ".":
            self._at += 1
            return self._asked(".", folded)
        letter, self._at = text[at], at + 1
        if letter == "\\":
            letter, self._at = text[at + 1 : at + 2], at + 2
            if not letter or (letter.isalnum() and letter not in _ESCAPES):
                raise Unknown(f"the escape {text[at : at + 2]!r}")
            letter = _ESCAPES.get(letter, letter)
        if folded and letter.upper() != letter.lower():
            if not letter.isascii():
                raise Unknown("a letter of any case")
            return self._alphabet.part(asked(f"(?i:{letter})"))
        return self._alphabet.part((ord(letter), ord(letter) + 1))

    def _asked(self, expression: str, folded: bool) -> str:
        if folded:
            raise Unknown("a class of any case")
        return self._alphabet.part(asked(expression))

    def _count(self) -> tuple[int, int, bool]:
        """Return how often a part comes: at least, at most (0: any number), and whether it gives nothing back."""
        if found := _COUNT.match(self._text, self._at):
            self._at = found.end()
            least = int(found[1])
            most = least if not found[2] else int(found[3] or 0)
            if self._text[self._at : self._at + 1] in ("?", "+") or max(least, most) > 64 or (found[3] and not most):
                raise Unknown("a count")
            return least, most, False
        counts = {"?": (0, 1), "*": (0, 0), "+": (1, 0)}
        sign = self._text[self._at : self._at + 1]
        if sign not in counts:
            return 1, 1, False
        self._at += 1
        if self._text[self._at : self._at + 1] == "?":
            raise Unknown("a repetition that takes as little as it can")
        return *counts[sign], self._taken("+")

    def _taken(self, text: str) -> bool:
        found = self._text.startswith(text, self._at)
        self._at += len(text) * found
        return found

    def _expect(self, text: str) -> None:
        if not self._taken(text):
            raise Unknown(f"no {text!r}")


def _end_of_class(text: str, at: int) -> int:
    """Return where a class ends that begins at a place, with those in it."""
    depth = 0
    while at < len(text):
        if text[at] == "[":
            depth += 1
            at += 1 if text.startswith("[^", at) else 0
            at += 1 if text.startswith("]", at + 1) else 0  # the first is a character
        elif text[at] == "]":
            depth -= 1
            if not depth:
                return at + 1
        elif text[at] == "\\":
            at += 1
        at += 1
    raise Unknown("a class without an end")
