"""From what a caller passes as ``json_schema=`` to a schema that the grammar engine enforces to the last keyword.

llguidance refuses the keywords of JSON Schema that it lacks. It passes over words that are no keywords, takes orders
from one of its own, and lets a key that the schema does not name come twice: that is refused here.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any, Protocol, runtime_checkable

from edgepack.errors import SchemaError
from edgepack.structured.bounds import check_depth, check_size, check_text, parts, too_deep
from edgepack.structured.disjoint import at

# Binds nothing: JSON Schema 2020-12 (core, section 8; validation, sections 8 and 9), and OpenAPI's hint for a union.
_NOTES = frozenset(
    {"$schema", "$id", "id", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary", "$comment", "$defs"}
    | {"definitions", "title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    | {"contentMediaType", "contentEncoding", "contentSchema", "discriminator"}
)


@runtime_checkable
class _Modelled(Protocol):
    """A class that knows its own schema, as pydantic's models do."""

    def model_json_schema(self) -> dict[str, Any]: ...


def read_schema(given: object) -> dict[str, Any]:
    """Return the schema of a mapping, a JSON text, True (any object) or a class with ``model_json_schema``.

    Raises ``SchemaError`` for what is no JSON Schema of a known draft, and for words in it that would bind nothing.
    """
    schema = _plain(given)
    check_depth(schema)
    check_size(schema)
    keywords = _keywords(schema)
    known = {id(part) for _, part in parts("/", schema)}
    for place, part in parts("/", schema):
        _check_part(place, part, keywords)
        target = at(schema, part["$ref"]) if part.get("$ref", "").startswith("#/") else True
        if not isinstance(target, bool) and id(target) not in known:
            raise SchemaError(
                f"json_schema: {place}$ref points to {part['$ref']!r}, where no schema can be.",
                hint="Put it into $defs.",
            )
    return schema


def binding(part: dict[str, Any]) -> set[str]:
    """Return the words of a schema that bind something."""
    return {word for word in part if word not in _NOTES and not word.startswith("x-")}


def _plain(given: object) -> dict[str, Any]:
    if given is True:
        return {"type": "object"}
    try:
        schema = given.model_json_schema() if isinstance(given, _Modelled) else given
        if isinstance(schema, str):
            check_text("json_schema", schema)
            schema = json.loads(schema)
        # What has no JSON form is found here, and what the caller does to his mapping afterwards changes nothing.
        text = json.dumps(schema, allow_nan=False, default=dict, ensure_ascii=False)
        check_text("json_schema", text)
        schema = json.loads(text)
    except SchemaError:
        raise
    except RecursionError:
        raise too_deep() from None
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
