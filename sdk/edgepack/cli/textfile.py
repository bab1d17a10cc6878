"""The texts that a command is given: files, and words of the command line."""

from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

from edgepack.errors import UsageError


def read(path: Path) -> str:
    """Return a file's text, without a byte order mark. Raises ``UsageError`` for none, and for what is not UTF-8."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8: {error.reason} at byte {error.start}.") from None
    if not text:
        raise UsageError(f"{path} is empty.")
    return text


def standard_input() -> str:
    """Return the text of standard input, none where it is closed. Raises ``UsageError`` for what is not UTF-8."""
    if sys.stdin is None:
        return ""
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        raise UsageError(f"Standard input is not UTF-8: {error.reason} at byte {error.start}.") from None


def schema(given: str | None, old: str | None = None) -> str | None:
    """Return a JSON schema that is given as it is, in braces, or by the name of its file. Raises as ``read``.

    ``old`` is what was given by the option's old name. Raises ``UsageError`` for both.
    """
    if given is not None and old is not None:
        raise UsageError("--schema was given beside --json-schema, its old name.", hint="Give --schema alone.")
    found = old if given is None else given
    if found is None:
        return None
    inline = found.lstrip().startswith("{")
    text = argument(found) if inline else read(Path(found))
    _parsed(text, "The schema" if inline else found, "Give a JSON schema in braces, or its file.")
    return text


def system(text: str | None, path: Path | None) -> str | None:
    """Return a system prompt that is given as it is, or in a file without its last line end. Raises as ``read``."""
    if text is not None and path is not None:
        raise UsageError("--system was given beside --system-file.", hint="Give one of them.")
    if path is not None:
        return read(path).removesuffix("\n")
    return None if text is None else argument(text)


def variables(words: list[str] | None) -> dict[str, object] | None:
    """Return the variables of NAME=VALUE words. A value that is JSON is that value, any other is text.

    Raises ``UsageError`` for a word without a name, a name that stands twice, and a value that begins as an object, a
    list or a string of JSON and is none.
    """
    if words is None:
        return None
    found: dict[str, object] = {}
    for word in map(argument, words):
        name, given, value = word.partition("=")
        if not given or not name:
            raise UsageError(f"--var {word} sets nothing.", hint="Write it as --var NAME=VALUE.")
        if name in found:
            raise UsageError(f"--var sets {name} twice.", hint="Set it once.")
        found[name] = _value(name, value)
    return found


def tools(path: Path | None) -> list[object] | None:
    """Return the definitions of tools in a file of JSON: a list of them, or one alone. Raises as ``read``."""
    if path is None:
        return None
    found = _parsed(read(path), str(path), "It holds a list of definitions of tools.")
    return found if isinstance(found, list) else [found]


def _parsed(text: str, what: str, hint: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{what} is no JSON: {error}.", hint=hint) from None


def _value(name: str, text: str) -> object:
    try:
        return json.loads(text, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        if text.lstrip()[:1] in ("{", "[", '"'):
            hint = f"Write a text that begins so as a string of JSON: {json.dumps(text, ensure_ascii=False)}"
            raise UsageError(f"The value of --var {name} is no JSON: {error}.", hint=hint) from None
        return text


def _no_constant(word: str) -> object:
    raise ValueError(word)  # NaN and its kin are none of JSON's, though Python reads them


def argument(text: str) -> str:
    """Return a word of the command line as it was typed, in UTF-8: in the C locale Python keeps it byte by byte."""
    if not re.search("[\udc80-\udcff]", text):
        return text
    try:
        return os.fsencode(text).decode()
    except UnicodeDecodeError:
        return text
