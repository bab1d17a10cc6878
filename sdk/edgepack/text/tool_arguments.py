"""Arguments that a model wrote in another type than their schema asks for, where no meaning changes by it.

Small models write ``"3"`` for 3, ``3.0`` for 3 and ``"true"`` for true. What could mean something else stays as it is
and is refused: a fraction for an integer, a number for a text, a text with a space around it.
Some formats have no types at all: there a text is what it is, unless its schema asks for something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator
from copy import deepcopy
from typing import Any

from edgepack.errors import ToolCallError
from edgepack.text.tool_values import PYTHON, after_space, json_at, value_at

_INTEGER = re.compile(r"0|-?[1-9][0-9]{0,999}")
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_TYPING = ("type", "enum", "const")  # what a schema says of a value's type
_EXACT = 2.0**53  # up to which every integer has a float of its own


def strict(kind: Any) -> Any:
    """Return a kind of validator to which ``3.0`` is no integer, as it is none to a function that takes one."""
    from jsonschema.validators import extend

    def is_integer(checker: object, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool)

    return extend(kind, type_checker=kind.TYPE_CHECKER.redefine("integer", is_integer))


def typed(validator: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """Return arguments that were all written as texts, with the values of those that their schema wants as such.

    A value is read as JSON, or as Python writes it. A text that is neither stays, and so does one that may be a text.
    """
    from referencing.exceptions import Unresolvable

    try:
        errors = [error for error in _leaves(validator.iter_errors(arguments)) if error.validator in _TYPING]
    except (RecursionError, Unresolvable):
        return arguments
    wanted = {error.absolute_path[0] for error in errors if len(error.absolute_path) == 1}
    return {key: _read(value) if key in wanted else value for key, value in arguments.items()}


def coerced(validator: Any, arguments: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return arguments with values in the types that their schema asks for, and what was written instead, by place.

    They are not checked otherwise, and are the given ones where nothing can be done.
    """
    from referencing.exceptions import Unresolvable

    try:
        made = deepcopy(arguments)
        errors = list(_leaves(validator.iter_errors(arguments)))
    except (RecursionError, Unresolvable):
        return arguments, {}
    written: dict[str, Any] = {}
    for error in errors:
        if error.validator != "type" or not error.absolute_path:
            continue
        *path, last = error.absolute_path
        parent, was = made, arguments
        for part in path:
            parent, was = parent[part], was[part]
        # A name of a property has the place of the object that it stands in.
        value = _as(error.instance, error.validator_value) if was[last] is error.instance else None
        if value is not None:
            parent[last] = value
            written[place_of("arguments", error.absolute_path)] = error.instance
    return made, written


def place_of(place: str, path: Iterable[str | int]) -> str:
    """Return the place of a path inside the value of another: ``arguments.days[0]``."""
    return place + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)


def _leaves(errors: Iterable[Any]) -> Iterator[Any]:
    """Yield the errors that others are made of: each branch of an ``anyOf`` has its own."""
    for error in errors:
        if error.context:
            yield from _leaves(error.context)
        else:
            yield error


def _read(value: object) -> object:
    if not isinstance(value, str):
        return value
    begin = after_space(value, 0)
    for found_at in (json_at, lambda text, at: value_at(text, at, PYTHON)):
        try:
            found, end = found_at(value, begin)
        except ToolCallError:
            continue
        if after_space(value, end) == len(value):
            return found
    return value


def _as(value: object, wanted: str | Collection[str]) -> int | float | None:
    kinds = (wanted,) if isinstance(wanted, str) else wanted
    if isinstance(value, float) and "integer" in kinds and value.is_integer() and abs(value) <= _EXACT:
        return int(value)
    if isinstance(value, str):
        if "boolean" in kinds and value in ("true", "false"):
            return value == "true"
        if ("integer" in kinds or "number" in kinds) and _INTEGER.fullmatch(value):
            return int(value)
        if "number" in kinds and _NUMBER.fullmatch(value) and math.isfinite(number := float(value)):
            return number
    return None
