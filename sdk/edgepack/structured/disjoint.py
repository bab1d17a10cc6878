"""Whether two schemas have no value in common, as far as that can be proven in a few steps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

_WORK = 20_000  # comparisons for all of one schema
_DEPTH = 8
_TYPES = frozenset({"null", "boolean", "number", "string", "array", "object"})


class Disjoint:
    """Compares the parts of one schema. What is not proven within its bounds counts as overlapping."""

    def __init__(self, schema: dict[str, Any]) -> None:
        self._schema = schema
        self._left = _WORK

    def __call__(self, one: object, other: object, depth: int = _DEPTH) -> bool:
        """Say whether it is certain that no value fits both."""
        self._left -= 1
        if one is False or other is False:
            return True
        if not (depth and self._left > 0 and isinstance(one, dict) and isinstance(other, dict)):
            return False
        others = list(self._all(other, depth))
        return any(self._facets(a, b, depth) for a in self._all(one, depth) for b in others)

    def _all(self, part: dict[str, Any], depth: int) -> Iterator[dict[str, Any]]:
        """Return schemas of which each must hold where a part does: what it refers to, or itself and its allOf."""
        self._left -= 1
        inner = part.get("allOf", ())
        if "$ref" in part:  # in older drafts, what stands beside it binds nothing
            inner = [self._at(part["$ref"])]
        else:
            yield part
        for each in inner:
            if isinstance(each, dict) and depth and self._left > 0:
                yield from self._all(each, depth - 1)

    def _facets(self, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        for one, other in ((a, b), (b, a)):
            for word in ("anyOf", "oneOf"):
                if word in one and all(self(branch, other, depth - 1) for branch in one[word]):
                    return True
        types = _types(a) & _types(b)
        if (values := _values(a)) is not None and (others := _values(b)) is not None:
            return not values & others
        return all(self._of_type(kind, a, b, depth) for kind in types)

    def _of_type(self, kind: str, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        """Say the same of the values of one type."""
        if kind == "number":
            return _ends_before(a, b) or _ends_before(b, a)
        if kind in ("string", "array"):
            least, most = ("minLength", "maxLength") if kind == "string" else ("minItems", "maxItems")
            return any(most in x and x[most] < y.get(least, 0) for x, y in ((a, b), (b, a)))
        if kind == "object":
            return any(self._differ(key, a, b, depth) for key in {*a.get("required", ()), *b.get("required", ())})
        return False

    def _differ(self, key: str, a: dict[str, Any], b: dict[str, Any], depth: int) -> bool:
        """Say whether two schemas of objects ask for different things under a key that one of them requires."""
        of_a, of_b = (_property(part, key) for part in (a, b))
        return self(of_a, of_b, depth - 1)

    def _at(self, reference: object) -> object:
        if not isinstance(reference, str) or not (reference + "/").startswith("#/"):
            return None
        return at(self._schema, reference)


def at(schema: dict[str, Any], reference: str) -> object:
    """Return what a JSON pointer of a schema points to, False where that is nothing."""
    place: Any = schema
    for name in reference.split("/")[1:]:
        name = name.replace("~1", "/").replace("~0", "~")
        if isinstance(place, list) and name.isdecimal():
            place = place[int(name)] if int(name) < len(place) else False
        else:
            place = place.get(name, False) if isinstance(place, dict) else False
    return place


def _types(part: dict[str, Any]) -> frozenset[str]:
    """Return the types that a schema allows; an integer is a number."""
    if (values := _values(part)) is not None:
        return frozenset(kind for kind, _ in values)
    given = part.get("type", _TYPES)
    return frozenset("number" if each == "integer" else each for each in ([given] if isinstance(given, str) else given))


def _values(part: dict[str, Any]) -> frozenset[tuple[str, str]] | None:
    """Return the values that a schema lists, each with its type, None where it lists none."""
    if "const" in part:
        return frozenset({_value(part["const"])})
    if isinstance(part.get("enum"), list):
        return frozenset(map(_value, part["enum"]))
    return None


def _value(value: object) -> tuple[str, str]:
    match value:
        case None:
            return "null", ""
        case bool():
            return "boolean", str(value)
        case int() | float():
            return "number", str(Decimal(repr(value)).normalize())
        case str():
            return "string", value
        case list():
            return "array", json.dumps([_value(each) for each in value])
        case _:
            items: dict[str, object] = dict(value)  # type: ignore[call-overload]
            return "object", json.dumps({name: _value(each) for name, each in items.items()}, sort_keys=True)


def _ends_before(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Say whether the greatest number of one schema is below the least of another."""
    for most, most_excluded in ((a.get("maximum"), False), (a.get("exclusiveMaximum"), True)):
        for least, least_excluded in ((b.get("minimum"), False), (b.get("exclusiveMinimum"), True)):
            if most is None or least is None or isinstance(most, bool) or isinstance(least, bool):  # as in draft 4
                continue
            if most < least or (most == least and (most_excluded or least_excluded)):
                return True
    return False


def _property(part: dict[str, Any], key: str) -> object:
    """Return the schema of a property that is there."""
    if key in part.get("properties", {}):
        return part["properties"][key]
    return True if part.get("patternProperties") else part.get("additionalProperties", True)
