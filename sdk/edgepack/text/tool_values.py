"""One value inside of a tool call: as JSON, or as a format spells it that has other quotes, keys or words.

Every character is looked at a bounded number of times, and no deeper than a call can mean.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

from edgepack.errors import ToolCallError

DEEPEST = 100
"""Levels of brackets that a value of another spelling than JSON may have."""

_SPACE = re.compile(r"[ \t\r\n]*")
_ATOM = re.compile(r"[\w.+-]+")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?P<real>(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)")
# Templates print them as Jinja does, or as JSON.
_WORDS = {"true": True, "True": True, "false": False, "False": False, "null": None, "None": None}

_QUOTE = re.compile(r"""\\(?s:.)|["']""")
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|x([0-9a-fA-F]{2})|U(00(?:0[0-9a-fA-F]|10)[0-9a-fA-F]{4})|(?s:(.)))")
_ESCAPED = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f"}


@dataclass(frozen=True, slots=True)
class Spelling:
    """How a format writes values. ``quote`` stands on both sides of a text, in which nothing is escaped; "" where texts
    are Python's. ``key`` matches one without quotes."""

    key: re.Pattern[str]
    quote: str = ""


PYTHON = Spelling(re.compile(r"[\w.$-]+"))


def quoted(quote: str) -> Spelling:
    """Return the spelling of Gemma's models: keys as they are, texts between tokens."""
    return Spelling(re.compile(r"[^\s:,{}\[\]][^:,{}\[\]]*"), quote)


def after_space(text: str, at: int) -> int:
    """Return the index of what follows white space."""
    return _SPACE.match(text, at).end()  # type: ignore[union-attr]


def expect(text: str, at: int, mark: str) -> int:
    """Return the index after a mark that stands after white space. Raises ``ToolCallError`` where it does not."""
    at = after_space(text, at)
    if not text.startswith(mark, at):
        raise missing(text, at, repr(mark))
    return at + len(mark)


def missing(text: str, at: int, expected: str) -> ToolCallError:
    """Return the error of a call that goes on with something else than is expected."""
    return ToolCallError(f"A tool call has {text[at : at + 20]!r} in the place of {expected}.", text=text)


def json_at(text: str, at: int) -> tuple[Any, int]:
    """Return the JSON that begins at an index, and the index after it. Raises ``ToolCallError``."""
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        reason = "too many brackets inside one another"
    except ValueError as error:
        reason = str(error)
    raise ToolCallError(f"A tool call is not JSON: {reason}.", text=text)


def value_at(text: str, at: int, spelling: Spelling, depth: int = 0) -> tuple[Any, int]:
    """Return the value that begins at an index or after white space, and the index after it.

    Raises ``ToolCallError`` for what is no value.
    """
    at = after_space(text, at)
    if depth > DEEPEST:
        raise ToolCallError("A tool call has too many brackets inside one another.", text=text)
    if text.startswith("{", at):
        return members(text, at + 1, spelling, depth=depth + 1)
    if text.startswith("[", at):
        return _items(text, at + 1, spelling, depth + 1)
    if (found := _text(text, at, spelling, ",)]}")) is not None:
        return found
    atom = _ATOM.match(text, at)
    if atom is None:
        raise missing(text, at, "a value")
    return _atom(atom[0], text, at), atom.end()


def members(
    text: str, at: int, spelling: Spelling, assigns: str = ":", closes: str = "}", depth: int = 0
) -> tuple[dict[str, Any], int]:
    """Return the values that follow an opening bracket, by their keys, and the index after the one that ``closes``.

    ``assigns`` stands between a key and its value. Raises ``ToolCallError``.
    """
    found: dict[str, Any] = {}
    at = after_space(text, at)
    while not text.startswith(closes, at):
        if found:
            at = after_space(text, expect(text, at, ","))
        key, at = _text(text, at, spelling, assigns) or _key(text, at, spelling)
        found[key], at = value_at(text, expect(text, at, assigns), spelling, depth)
        at = after_space(text, at)
    return found, at + 1


def _items(text: str, at: int, spelling: Spelling, depth: int) -> tuple[list[Any], int]:
    found: list[Any] = []
    at = after_space(text, at)
    while not text.startswith("]", at):
        value, at = value_at(text, expect(text, at, ",") if found else at, spelling, depth)
        found.append(value)
        at = after_space(text, at)
    return found, at + 1


def _key(text: str, at: int, spelling: Spelling) -> tuple[str, int]:
    key = spelling.key.match(text, at)
    if key is None:
        raise missing(text, at, "a name")
    return key[0].rstrip(), key.end()


def _text(text: str, at: int, spelling: Spelling, follow: str) -> tuple[str, int] | None:
    """Return the text between quotes that begins at an index, and the index after it; None where none begins there.

    ``follow`` are the characters of which one comes next.
    """
    quote = spelling.quote
    if quote and text.startswith(quote, at):
        begin = at + len(quote)
        end = text.find(quote, begin)
        if end < 0:
            raise ToolCallError("A tool call has a text without an end.", text=text)
        return text[begin:end], end + len(quote)
    if quote and text.startswith('"', at):  # as models write it that were trained on JSON before
        return json_at(text, at)
    return None if quote or not text.startswith(("'", '"'), at) else _python(text, at, follow)


def _python(text: str, at: int, follow: str) -> tuple[str, int]:
    """Return a text in Python's quotes. One of them inside, which templates do not escape, does not end it."""
    for mark in _QUOTE.finditer(text, at + 1):
        if mark[0] == text[at]:
            after = after_space(text, mark.end())
            if after < len(text) and text[after] in follow:
                return _unescaped(text[at + 1 : mark.start()]), mark.end()
    raise ToolCallError("A tool call has a text without an end.", text=text)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    made = _ESCAPE.sub(_character, text)
    return made.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")  # a pair that JSON writes as two


def _character(escape: re.Match[str]) -> str:
    code, letter = escape[1] or escape[2] or escape[3], escape[4]
    if code is not None:
        return chr(int(code, 16))
    return _ESCAPED.get(letter) or (letter if letter in "\\'\"/" else escape[0])


def _atom(word: str, text: str, at: int) -> Any:
    if word in _WORDS:
        return _WORDS[word]
    if (number := _NUMBER.fullmatch(word)) is None:
        raise missing(text, at, "a value")
    try:
        return _finite(word) if number["real"] else int(word)
    except ValueError as error:
        raise ToolCallError(f"A tool call has no value: {error}.", text=text) from None


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is no finite number")
    return value


# Not strict: small models write line breaks inside strings, which leaves no doubt what is meant.
_DECODER = json.JSONDecoder(strict=False, parse_float=_finite, parse_constant=_finite)
