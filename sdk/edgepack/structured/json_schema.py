"""From what a caller passes as ``json_schema=`` to a schema that the grammar engine enforces to the last keyword.

llguidance refuses the keywords of JSON Schema that it lacks. It passes over words that are no keywords, takes orders
from one of its own, and lets a key that the schema does not name come twice: that is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

from edgepack.errors import SchemaError

# Binds nothing: JSON Schema 2020-12 (core, section 8; validation, sections 8 and 9), and OpenAPI's hint for a union.
_NOTES = frozenset(
    {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs"}
    | {"definitions", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"contentMediaType", "contentEncoding", "contentSchema", "discriminator"}
)
_NAMED = ("properties", "patternProperties", "$defs", "definitions")
_NESTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items", "additionalItems", "additionalProperties")


@runtime_checkable
class _Modelled(Protocol):
    """A class that knows its own schema, as pydantic's models do."""

    def model_json_schema(self) -> dict[str, Any]: ...


def read_schema(given: object) -> dict[str, Any]:
    """Return the schema of a mapping, a JSON text, True (any object) or a class with ``model_json_schema``.

    Raises ``SchemaError`` for what is no JSON Schema of a known draft, and for words in it that would bind nothing.
    """
    schema = _plain(given)
    keywords = _keywords(schema)
    for place, part in parts("/", schema):
        _check_part(place, part, keywords)
    return schema


def binding(part: dict[str, Any]) -> set[str]:
    """Return the words of a schema that bind something."""
    return {word for word in part if word not in _NOTES and not word.startswith("x-")}


def _plain(given: object) -> dict[str, Any]:
    if given is True:
        return {"type": "object"}
    try:
        schema = given.model_json_schema() if isinstance(given, _Modelled) else given
        schema = json.loads(schema) if isinstance(schema, str) else schema
        # What has no JSON form is found here, and what the caller does to his mapping afterwards changes nothing.
        schema = json.loads(json.dumps(schema, allow_nan=False, default=dict))
    except (TypeError, ValueError) as error:
        raise SchemaError(f"json_schema is not JSON: {error}.", hint="Pass a dict, or a JSON text.") from None
    if not isinstance(schema, dict):
        raise SchemaError(
            f"json_schema is of type {type(schema).__name__}.",
            hint="Pass a dict, the JSON text of one, a model class, or True for any object.",
        )
    return schema


def _keywords(schema: dict[str, Any]) -> Collection[str]:
    """Return the keywords that bind in the draft of a schema, which is valid in it."""
    from jsonschema import FormatChecker
    from jsonschema.exceptions import SchemaError as Invalid
    from jsonschema.validators import Draft202012Validator, validator_for

    dialect = schema.get("$schema", Draft202012Validator.META_SCHEMA["$id"])
    validator = validator_for({"$schema": dialect}, default=None) if isinstance(dialect, str) else None
    if validator is None:
        raise SchemaError(f"json_schema: $schema is {dialect!r}.", hint="Only the published drafts are known.")
    try:
        # Not the formats: a pattern need not be one of Python's.
        validator.check_schema(schema, format_checker=FormatChecker(()))
    except Invalid as error:
        raise SchemaError(f"json_schema: {error.json_path}: {error.message}.", hint="Correct the schema.") from None
    binding: Mapping[str, object] = validator.VALIDATORS
    return binding


def parts(place: str, schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a schema and all that are inside it, each with its place."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name in _NAMED:
        for key, inner in schema.get(name, {}).items():
            yield from parts(f"{place}{name}/{key}/", inner)
    for name in _NESTED:
        inner = schema.get(name)
        for index, each in enumerate(inner if isinstance(inner, list) else [inner]):
            yield from parts(f"{place}{name}/{index}/" if isinstance(inner, list) else f"{place}{name}/", each)


def _check_part(place: str, part: dict[str, Any], keywords: Collection[str]) -> None:
    for word in part:
        if word == "x-guidance" or word in binding(part).difference(keywords):
            raise SchemaError(
                f"json_schema: {place}{word} is no keyword that could bind an answer.",
                hint="Correct it, or remove it: it would be passed over.",
            )
    if part.get("minProperties", 0) > len(part.get("required", ())) + 1:
        raise SchemaError(
            f"json_schema: {place}minProperties cannot be kept: a key that is not in required may come twice.",
            hint="Name the keys in required.",
        )
