"""Which tools an answer is to call: what ``tool_choice`` says, and the schema that binds an answer to such a call.

What is bound is JSON, because then what the schema allows and what is read as a valid call are the same texts. The mark
before the JSON is written for the model, token by token, so that it may be a special one. A call that a format does not
write as JSON is bound as the object that is read as a call in every format.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgepack.errors import UsageError
from edgepack.text.tool_formats import Format, Wording

_PLAIN = Wording("")
_WORDS = "Choose one of: auto, none, required, the name of a tool."


@dataclass(frozen=True, slots=True)
class Choice:
    """What is asked for. ``names``: the tools of which the answer has to call one, None where it may do without.
    ``reads``: whether calls in the answer are looked for."""

    names: tuple[str, ...] | None = None
    reads: bool = True


def read_choice(value: object, names: Collection[str]) -> Choice:
    """Return the choice among the tools of these names: "auto", "none", "required", the name of one, or a mapping with
    it as ``{"name": ...}`` or in OpenAI's form. Raises ``UsageError`` for anything else."""
    if isinstance(value, Mapping):
        function = value.get("function", value)
        value = function.get("name") if isinstance(function, Mapping) else None
        if isinstance(value, str):
            return _named(value, names)
        raise UsageError("tool_choice names no tool.", hint=_WORDS)
    if value is None or value == "auto":
        return Choice()
    if value == "none":
        return Choice(reads=False)
    if value == "required":
        return Choice(tuple(names))
    if isinstance(value, str):
        return _named(value, names)
    raise UsageError(f"tool_choice is of type {type(value).__name__}.", hint=_WORDS)


def binding(choice: Choice, form: Format, functions: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return ``opening`` and ``json_schema``: what stands before the JSON of a call, and the schema of that.

    ``functions`` are the definitions of the tools.
    """
    called = [each for each in functions if each["name"] in (choice.names or ())]
    # Where the name stands before the JSON, it is written for the model, and so there can be but one.
    wording = form.wording if form.wording is not None and (form.wording.key or len(called) == 1) else _PLAIN
    if not wording.key:
        schema = _moved(called[0]["parameters"], "#")
        return {"opening": wording.before.replace("{name}", called[0]["name"]), "json_schema": schema}
    places = [f"#/$defs/{index}" for index in range(len(called))]
    calls = [_call(each["name"], wording.key, place) for each, place in zip(called, places, strict=True)]
    one: dict[str, Any] = calls[0] if len(calls) == 1 else {"anyOf": calls}
    if wording.listed:
        one = {"type": "array", "items": one, "minItems": 1, "maxItems": 1}
    parameters = {
        place.rpartition("/")[2]: _moved(each["parameters"], place) for each, place in zip(called, places, strict=True)
    }
    return {"opening": wording.before, "json_schema": {**one, "$defs": parameters}}


def _named(name: str, names: Collection[str]) -> Choice:
    if name not in names:
        raise UsageError(f"tool_choice is {name[:64]!r}, which is no tool.", hint=f"There are: {', '.join(names)}.")
    return Choice((name,))


def _call(name: str, key: str, parameters: str) -> dict[str, Any]:
    properties = {"name": {"const": name}, key: {"$ref": parameters}}
    return {"type": "object", "properties": properties, "required": ["name", key], "additionalProperties": False}


def _moved(schema: Any, place: str) -> Any:
    """Return a schema that stands at a place of another, with its references to its own parts."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: place + value[1:]
        if key == "$ref" and isinstance(value, str) and value.startswith("#")
        else value
        if key in ("const", "enum", "default", "examples")
        else _moved(value, place)
        for key, value in schema.items()
        if key != "$schema"
    }
