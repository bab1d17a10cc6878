"""A Python function to the definition of a tool: its signature in JSON schema, its docstring in descriptions."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Sequence
from dataclasses import MISSING, fields, is_dataclass
from enum import Enum
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

from edgepack.errors import SchemaError

_PLAIN: dict[object, dict[str, Any]] = {
    str: {"type": "string"},
    int: {"type": "integer"},
    float: {"type": "number"},
    bool: {"type": "boolean"},
    type(None): {"type": "null"},
}
_SUPPORTED = (
    "Use str, int, float, bool, None, list[T], dict[str, T], Literal, an Enum, a union, a dataclass or a TypedDict."
)
_SECTION = re.compile(r"([A-Z]\w*):$")
_PARAMETERS = ("Args", "Arguments", "Parameters")
_PARAMETER = re.compile(r"(?::param\s+)?(\w+)\s*(?:\([^)]*\))?:\s*(.*)$")


def definition_of(function: Callable[..., object], place: str) -> dict[str, Any]:
    """Return ``{"name", "description", "parameters"}`` of a function.

    A parameter with a default is not required. The description is the docstring's first paragraph; parameters are
    described by its lines ``name: text``, such as those of a section ``Args:``.
    Raises ``SchemaError`` that names the function and the parameter for what no definition can say.
    """
    name = getattr(function, "__name__", None)
    if not isinstance(name, str):
        raise SchemaError(f"{place} has no name.", hint="Pass a function, or a definition in JSON schema.")
    place = f"{place} ({name})"
    try:
        parameters = inspect.signature(function).parameters
        hints = get_type_hints(function, include_extras=True)
    except (TypeError, ValueError, NameError) as error:
        raise SchemaError(
            f"{place} has no readable signature: {error}.", hint="Pass a definition in JSON schema."
        ) from None
    description, described = _docstring(inspect.getdoc(function) or "", parameters)
    properties: dict[str, Any] = {}
    for key, parameter in parameters.items():
        where = f"{place}: the parameter {key!r}"
        if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
            raise SchemaError(f"{where} is not passed by name.", hint="A tool's arguments are passed by name.")
        if key not in hints:
            raise SchemaError(f"{where} has no annotation.", hint=_SUPPORTED)
        properties[key] = _schema(hints[key], where, ()) | _default(parameter.default)
        if key in described:
            properties[key]["description"] = described[key]
    required = [key for key, parameter in parameters.items() if parameter.default is inspect.Parameter.empty]
    return {"name": name, "description": description, "parameters": _object(properties, required)}


def _object(properties: dict[str, Any], required: Sequence[str]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


def _default(value: object) -> dict[str, Any]:
    value = value.value if isinstance(value, Enum) else value
    return {"default": value} if isinstance(value, (str, int, float)) else {}


def _schema(annotation: Any, place: str, within: tuple[object, ...]) -> dict[str, Any]:
    """Return the schema of an annotation; ``within`` are the classes whose fields are being described."""
    for kind, schema in _PLAIN.items():
        if annotation is kind:
            return dict(schema)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, types.UnionType):
        return {"anyOf": [_schema(each, place, within) for each in arguments]}
    if origin in (Required, NotRequired):
        return _schema(arguments[0], place, within)
    if origin is Literal:
        return _one_of([each.value if isinstance(each, Enum) else each for each in arguments], place)
    if origin is list and arguments:
        return {"type": "array", "items": _schema(arguments[0], place, within)}
    if origin is dict and arguments[:1] == (str,):
        return {"type": "object", "additionalProperties": _schema(arguments[1], place, within)}
    if isinstance(annotation, type) and origin is None:
        if issubclass(annotation, Enum):
            return _one_of([member.value for member in annotation], place)
        if is_dataclass(annotation) or is_typeddict(annotation):
            if annotation in within:
                raise SchemaError(f"{place} holds {annotation.__name__} inside itself.", hint=_SUPPORTED)
            return _fields(annotation, place, (*within, annotation))
    shown = annotation.__name__ if isinstance(annotation, type) and origin is None else str(annotation)
    raise SchemaError(f"{place} is of type {shown}, which has no JSON schema here.", hint=_SUPPORTED)


def _one_of(values: list[Any], place: str) -> dict[str, Any]:
    for value in values:
        if not isinstance(value, (str, int, float, type(None))):
            raise SchemaError(f"{place} has the choice {value!r}, which JSON lacks.", hint=_SUPPORTED)
    kinds = {type(value) for value in values}
    return {**(_PLAIN[kinds.pop()] if len(kinds) == 1 and kinds <= _PLAIN.keys() else {}), "enum": values}


def _fields(structure: Any, place: str, within: tuple[object, ...]) -> dict[str, Any]:
    try:
        hints = get_type_hints(structure, include_extras=True)
    except NameError as error:
        raise SchemaError(f"{place}: {structure.__name__} has no readable annotations: {error}.") from None
    if is_dataclass(structure):
        made = [field for field in fields(structure) if field.init]
        required = [field.name for field in made if field.default is MISSING and field.default_factory is MISSING]
        hints = {field.name: hints[field.name] for field in made}
    else:  # __required_keys__ does not see a qualifier in an annotation that is text
        said = {key: get_origin(hint) for key, hint in hints.items()}
        total = structure.__required_keys__
        required = [key for key in hints if said[key] is Required or (key in total and said[key] is not NotRequired)]
    return _object({key: _schema(hint, f"{place}, {key!r}", within) for key, hint in hints.items()}, required)


def _docstring(text: str, names: Collection[str]) -> tuple[str, dict[str, str]]:
    """Return the first paragraph of a docstring, and the texts of the parameters that it describes."""
    summary: list[str] = []
    described: dict[str, str] = {}
    current, indent, in_summary, reads = "", 0, True, True
    for line in text.splitlines():
        words, depth = line.strip(), len(line) - len(line.lstrip())
        section, found = _SECTION.match(words), _PARAMETER.match(words)
        if found and found[1] in names:
            current, indent, in_summary = found[1], depth, False
            if reads:
                described[current] = found[2]
        elif current and words and depth > indent:
            if reads:
                described[current] += f" {words}"
        else:
            current = ""
            reads = section[1] in _PARAMETERS if section else reads
            in_summary = in_summary and not section and bool(words or not summary)
            if in_summary:
                summary.append(words)
    return " ".join(summary).strip(), {name: words.strip() for name, words in described.items() if words.strip()}
