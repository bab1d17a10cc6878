"""The fields of a request: those that a dialect documents, what of them can be honoured, and their types.

A field that nothing here knows, and a value that cannot be honoured, are refused by name: a client that sends one
means something by it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from edgepack.errors import UsageError, check_options
from edgepack_serve.asked import Body

T = TypeVar("T")
Neutral = Mapping[str, tuple[object, ...]]
"""Documented fields that cannot be honoured, with the values that ask for nothing."""

_PLACE = re.compile(r" - at `(?:key in )?\$\.?([^`]*)`$")
_BEGIN = re.compile(r"[a-z_]+(?:\[\d+\]|\.\w+)*")
_UNKNOWN = re.compile(r"has no option '([^']*)'")


def read(body: Body, form: type[T], what: str, *, neutral: Neutral | None = None, passed: frozenset[str]) -> T:
    """Return a body as ``form``, a struct whose fields are those that are honoured.

    ``what`` begins the sentence of an unknown field; ``neutral`` are the fields that may only have certain values,
    ``passed`` those that ask nothing of an answer and may have any. Raises ``UsageError``.
    """
    neutral = neutral or {}
    known = [field.encode_name for field in msgspec.structs.fields(form)]  # type: ignore[arg-type]
    check_options(what, body, [*known, *neutral, *passed])
    for name, values in neutral.items():
        check_neutral(name, body.get(name), values)
    given = {name: value for name, value in body.items() if name in known and value is not None}
    try:
        return msgspec.convert(given, form)
    except msgspec.ValidationError as error:
        raise UsageError(told(str(error))) from None


def check_neutral(name: str, value: object, values: tuple[object, ...]) -> None:
    """Raise ``UsageError`` for a field that may only have these values, or none."""
    if value is None or any(_same(value, each) for each in values):
        return
    allowed = [msgspec.json.encode(each).decode() for each in values if each is not None]
    hint = f"Leave it out, or send {' or '.join(allowed)}." if allowed else "Leave it out."
    raise UsageError(f"{name} cannot be honoured here.", hint=hint)


def told(message: str) -> str:
    """Return a sentence of msgspec's with the place at its beginning: "messages[0].role: Expected `str`, got `int`."""
    found = _PLACE.search(message)
    if found is None:
        return f"{message}."
    return f"{found[1] or 'The body'}: {message[: found.start()]}."


def named(message: str, known: frozenset[str]) -> str | None:
    """Return the field that a sentence begins with, or that it says nothing knows; None where it names none."""
    if (unknown := _UNKNOWN.search(message)) is not None:
        return unknown[1]
    found = _BEGIN.match(message)
    if found is None or re.split(r"[.\[]", found[0])[0] not in known:
        return None
    return found[0]


def _same(value: object, other: object) -> bool:
    """Whether two values are the same in JSON: True is not 1, and 0.0 is 0."""
    if isinstance(value, bool) or isinstance(other, bool):
        return value is other
    return value == other
