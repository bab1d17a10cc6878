"""How large a schema, a regex or a grammar may be: bounds that are kept before anything native or recursive sees it.

What they let through is compiled within seconds, and within the stack that ``edgepack.structured.apart`` gives.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from edgepack.errors import SchemaError

_BYTES = {"json_schema": 256 * 1024, "regex": 16 * 1024, "grammar": 64 * 1024}
_DEPTH = 100  # of JSON in JSON
_PARTS = 5_000  # schemas in a schema, and so references in a chain
_PROPERTIES = 1_000  # of an object
_BRANCHES = 500  # of anyOf and its kin
_VALUES = 10_000  # of an enum
_RULES = 2_000
_BOTH = 50  # of the operator &: llguidance multiplies what stands on its sides
_RULE = re.compile(r"^[ \t]*[?!]*[A-Za-z_]\w*+[^\n:\"'/|]*+:", re.MULTILINE)
_PLACE = 60  # characters of a place that are shown
_SURROGATE = re.compile("[\ud800-\udfff]")

NAMED = ("properties", "patternProperties", "$defs", "definitions")
NESTED = ("allOf", "anyOf", "oneOf", "prefixItems", "items", "additionalItems", "additionalProperties")
_MOST = {
    **dict.fromkeys(("properties", "patternProperties", "required"), (_PROPERTIES, "properties")),
    **dict.fromkeys(("allOf", "anyOf", "oneOf", "prefixItems", "items"), (_BRANCHES, "branches")),
    "enum": (_VALUES, "values"),
}


def check_text(kind: str, text: str) -> None:
    """Raise ``SchemaError`` for a regex, a grammar or a schema's text that is too long, or is no text."""
    if found := _SURROGATE.search(text):
        raise SchemaError(f"{kind}: half a surrogate pair stands at character {found.start()}.", hint="Remove it.")
    _at_most(kind, "", len(text.encode()), _BYTES[kind], "bytes")
    if kind == "grammar":
        _at_most(kind, "", sum(1 for _ in _RULE.finditer(text)), _RULES, "rules")
        _at_most(kind, "", text.count("&"), _BOTH, "characters &")


def check_depth(schema: object) -> None:
    """Raise ``SchemaError`` for JSON values that lie too deep in each other, or in themselves."""
    pending: list[tuple[str, object, int]] = [("/", schema, 1)]
    seen = 0
    while pending:
        place, value, depth = pending.pop()
        seen += 1
        if depth > _DEPTH:
            raise too_deep(place)
        if seen > _BYTES["json_schema"]:  # each takes a byte and more
            raise _too_much("json_schema", "", "values", _BYTES["json_schema"])
        if isinstance(value, dict):
            pending += [(f"{place}{str(key)[:_PLACE]}/", inner, depth + 1) for key, inner in value.items()]
        elif isinstance(value, list):
            pending += [(place, inner, depth + 1) for inner in value]


def too_deep(place: str = "") -> SchemaError:
    """Return the error for a schema whose parts lie too deep in each other."""
    return _too_much("json_schema", place, "levels of nesting", _DEPTH)


def check_size(schema: dict[str, Any]) -> None:
    """Raise ``SchemaError`` for a schema with too many parts, properties or alternatives.

    Each part is compiled once, at worst all of them in a chain of references.
    """
    for count, (place, part) in enumerate(parts("/", schema), 1):
        if count > _PARTS:
            raise _too_much("json_schema", place, "schemas", _PARTS)
        for word, (most, what) in _MOST.items():
            if isinstance(part.get(word), dict | list):
                _at_most("json_schema", f"{place}{word}", len(part[word]), most, what)


def parts(place: str, schema: object) -> Iterator[tuple[str, dict[str, Any]]]:
    """Return a schema and all that are inside it, each with its place."""
    if not isinstance(schema, dict):
        return
    yield place, schema
    for name in NAMED:
        named = schema.get(name)
        for key, inner in named.items() if isinstance(named, dict) else ():
            yield from parts(f"{place}{name}/{key}/", inner)
    for name in NESTED:
        inner = schema.get(name)
        for index, each in enumerate(inner if isinstance(inner, list) else [inner]):
            yield from parts(f"{place}{name}/{index}/" if isinstance(inner, list) else f"{place}{name}/", each)


def _at_most(kind: str, place: str, found: int, most: int, what: str) -> None:
    if found > most:
        raise _too_much(kind, place, what, most)


def _too_much(kind: str, place: str, what: str, most: int) -> SchemaError:
    place = place if len(place) <= _PLACE else f"{place[:_PLACE]}..."
    where = f"{place} " if place else "it "
    return SchemaError(f"{kind}: {where}has more than {most:,} {what}.", hint="Ask for less, or in several answers.")
