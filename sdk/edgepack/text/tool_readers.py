"""What stands inside the marks of a tool call, in each form that models are trained to write.

A reader gets a text and the index after the opening mark, and returns the calls there and the index after them. A call
is ``{"name": ..., "arguments": {...}}``, or what a model wrote in its place as JSON. Readers raise ``ToolCallError``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from edgepack.errors import ToolCallError
from edgepack.text.tool_values import PYTHON, after_space, expect, json_at, members, missing, quoted

Reader = Callable[[str, int], tuple[list[Any], int]]

_BRACED = re.compile(r"[^\s{]+")
_CALLED = re.compile(r"[\w.-]+")
_TAGGED = re.compile(r'[^<>"\s][^<>"]*')
_MISTRAL = re.compile(r"([^\s\[{]+)(?:\[CALL_ID\]([^\s\[{]*))?")


def objects(text: str, at: int) -> tuple[list[Any], int]:
    """Read an object of JSON, or a list of them."""
    value, at = json_at(text, at)
    if value == []:
        raise ToolCallError("A list of tool calls is empty.", text=text)
    return value if isinstance(value, list) else [value], at


def braced(quote: str) -> Reader:
    """Return the reader of Gemma's form: ``call:NAME{KEY:VALUE,...}``, with a token as ``quote`` around texts."""
    spelling = quoted(quote)

    def read(text: str, at: int) -> tuple[list[Any], int]:
        name, at = _name(_BRACED, text, after_space(text, expect(text, at, "call:")))
        arguments, at = members(text, expect(text, at, "{"), spelling)
        return [{"name": name[0], "arguments": arguments}], at

    return read


def pythonic(text: str, at: int) -> tuple[list[Any], int]:
    """Read a list of calls as Python writes them: ``[NAME(KEY=VALUE, ...), ...]``."""
    calls: list[Any] = []
    at = after_space(text, expect(text, at, "["))
    while not calls or not text.startswith("]", at):
        name, at = _name(_CALLED, text, after_space(text, expect(text, at, ",") if calls else at))
        arguments, at = members(text, expect(text, at, "("), PYTHON, "=", ")")
        calls.append({"name": name[0], "arguments": arguments})
        at = after_space(text, at)
    return calls, at + 1


def bracketed(text: str, at: int) -> tuple[list[Any], int]:
    """Read ``NAME[ARGS]{...}``, perhaps with ``[CALL_ID]ID`` after the name, as Mistral's later models write it."""
    name, at = _name(_MISTRAL, text, after_space(text, at))
    arguments, at = json_at(text, after_space(text, expect(text, at, "[ARGS]")))
    call = {"name": name[1], "arguments": arguments}
    return [call if name[2] is None else {**call, "id": name[2]}], at


def tagged(
    function: tuple[str, str],
    parameter: tuple[str, str],
    *,
    ends: str,
    pad: tuple[str, str] = ("", ""),
    whole: bool = True,
) -> Reader:
    """Return the reader of a form in tags, whose values are texts as they are.

    ``function`` and ``parameter`` are what stands on both sides of their names, ``ends`` closes a value, ``pad`` is
    what may stand around it besides. ``whole``: the tag that closes the function stands inside the mark that closes the
    call, else it is that mark, and is left. What looks like the end of a value and is followed by neither tag is part
    of it.
    """
    closes = "</function>"
    end = re.compile(rf"{re.escape(ends)}(?=\s*(?:{re.escape(parameter[0])}|{closes}))")

    def name(text: str, at: int, marks: tuple[str, str]) -> tuple[str, int]:
        word, at = _name(_TAGGED, text, expect(text, at, marks[0]))
        return word[0].strip(), expect(text, at, marks[1])

    def read(text: str, at: int) -> tuple[list[Any], int]:
        called, at = name(text, at, function)
        arguments: dict[str, Any] = {}
        while text.startswith(parameter[0], after_space(text, at)):
            key, at = name(text, at, parameter)
            found = end.search(text, at)
            if found is None:
                raise ToolCallError(f"A tool call has no {ends!r} after {key[:64]!r}.", text=text)
            arguments[key] = _value(text[at : found.start()], pad)
            at = found.end()
        at = expect(text, at, closes)
        return [{"name": called, "arguments": arguments}], at if whole else at - len(closes)

    return read


def _value(text: str, pad: tuple[str, str]) -> str:
    return text[len(pad[0]) :].removesuffix(pad[1]) if text.startswith(pad[0]) else text


def _name(pattern: re.Pattern[str], text: str, at: int) -> tuple[re.Match[str], int]:
    found = pattern.match(text, at)
    if found is None:
        raise missing(text, at, "a name")
    return found, found.end()
