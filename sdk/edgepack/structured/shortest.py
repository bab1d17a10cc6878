"""Short texts for a JSON schema and for its parts, put together from the inside out.

They are where the search for a closing starts from. One that does not fit, since a keyword was left out of account,
does no harm: whatever is taken from here is tried by the grammar.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

from edgepack.structured.bounds import parts
from edgepack.structured.disjoint import at
from edgepack.structured.json_schema import binding

_LONGEST = 10_000  # characters of a text that is worth keeping
_MOST = 200  # texts of a kind
_LOOKS = 2_000  # at parts, of which one may be looked at more than once
_DEEP = 100  # parts around a part
_OBJECT = {"type", "properties", "required", "additionalProperties"}
_STRING = {"type", "minLength", "maxLength"}
_ARRAY = {"type", "items", "prefixItems", "minItems", "maxItems"}

Search = Callable[[dict[str, Any]], str | None]


class Shortest:
    """Finds texts for the parts of one schema; ``search`` does it for a part that is not put together of others."""

    def __init__(self, schema: dict[str, Any], search: Search) -> None:
        self._schema = schema
        self._search = search
        self._known: dict[str, str | None] = {}
        self._found: dict[str, str | None] = {}  # by the search
        self._open: list[str] = []  # the parts around the one that is looked at
        self._looks = 0

    def values(self) -> list[str]:
        """Return texts for the whole and for its parts, the short ones first."""
        whole, *inner = (self.text(part) for _, part in parts("/", self._schema))
        found = sorted({text for text in inner if text}, key=lambda text: (len(text), text))
        return [*found[:_MOST], *([whole] if whole else [])]

    def ends(self) -> list[str]:
        """Return the ends of texts for strings and keys with a pattern or a format, for those that have begun."""
        found: dict[str, None] = {}
        for _, part in parts("/", self._schema):
            keys = [{"type": "string", "pattern": pattern} for pattern in part.get("patternProperties", ())]
            for string in [part, *keys] if "pattern" in part or "format" in part else keys:
                text = self.text(string) or ""
                found |= dict.fromkeys(text[start:] for start in range(len(text)))
        return list(found)[:_MOST]

    def text(self, part: object) -> str | None:
        """Return a short text for a schema, None where there is none, or none without an end."""
        if not isinstance(part, dict):
            return None if part is False else "0"
        words = binding(part)
        part = {word: value for word, value in part.items() if word in words}
        key = json.dumps(part)
        if key in self._known:
            return self._known[key]
        if key in self._open or self._looks == _LOOKS or len(self._open) == _DEEP:
            return None
        self._looks += 1
        self._open.append(key)
        text = self._made(part)
        self._open.pop()
        if text is not None or not self._open:  # inside of others there may be none where there is one outside
            self._known[key] = text
        return text

    def _made(self, part: dict[str, Any]) -> str | None:
        words = set(part)
        if not words:
            return "0"
        if "const" in words:
            return _json(part["const"])
        if "enum" in words:
            return _least(map(_json, part["enum"]))
        if words == {"$ref"} and (part["$ref"] + "/").startswith("#/"):
            return self.text(at(self._schema, part["$ref"]))
        if words in ({"anyOf"}, {"oneOf"}):
            return _least(map(self.text, part[words.pop()]))
        if part.get("type") == "object" and words <= _OBJECT:
            return self._object(part)
        if part.get("type") == "array" and words <= _ARRAY and not isinstance(part.get("items"), list):
            return self._array(part)
        if part.get("type") == "string" and words <= _STRING:
            return _json("0" * min(part.get("minLength", 0), _LONGEST))
        return self._alone(part)

    def _alone(self, part: dict[str, Any]) -> str | None:
        key = json.dumps(part)
        if key not in self._found:
            around = {name: self._schema[name] for name in ("$schema", "$defs", "definitions") if name in self._schema}
            self._found[key] = self._search(around | part)
        return self._found[key]

    def _object(self, part: dict[str, Any]) -> str | None:
        properties, required = part.get("properties", {}), part.get("required", ())
        names = [name for name in properties if name in required]
        names += [name for name in required if name not in properties]
        texts = {name: self.text(properties.get(name, part.get("additionalProperties", True))) for name in names}
        return _joined("{}", [text and f"{_json(name)}:{text}" for name, text in texts.items()])

    def _array(self, part: dict[str, Any]) -> str | None:
        least, first = part.get("minItems", 0), part.get("prefixItems", [])[: part.get("minItems", 0)]
        rest = self.text(part.get("items", True)) if least > len(first) else None
        return _joined("[]", [*map(self.text, first), *[rest] * min(least - len(first), _LONGEST)])


def _joined(brackets: str, texts: list[str | None]) -> str | None:
    whole = [text for text in texts if text]
    if len(whole) < len(texts) or sum(map(len, whole)) > _LONGEST:
        return None
    return f"{brackets[0]}{','.join(whole)}{brackets[1]}"


def _least(texts: Iterable[str | None]) -> str | None:
    return min((text for text in texts if text), key=len, default=None)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
