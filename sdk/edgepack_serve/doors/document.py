"""GET /openapi.json: the endpoints in OpenAPI 3.1, with the fields that each honours."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from importlib.metadata import version
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack_serve.asked import Dialect, Question
from edgepack_serve.doors import fields

_REFUSALS = {
    400: "A field that is wrong, unknown, or cannot be honoured; the error names it.",
    401: "The token is missing or false.",
    403: "The host or the origin is not one of this server's.",
    404: "No such model.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is no JSON by its type.",
    429: "Too many requests wait; Retry-After says for how long.",
    500: "The engine failed.",
    503: "The model cannot be loaded, or the server stops.",
    504: "The answer took too long.",
}


_JSON = "application/json"
_KINDS = {"/": "text/html", "/status": "text/html", "/static/{name}": "*/*", "/metrics": "text/plain"}


class Document:
    """Answers with the document of these doors."""

    def __init__(
        self, doors: Mapping[str, Dialect | Question[Any]], others: Mapping[str, str], models: Collection[str]
    ) -> None:
        """``others`` are the paths of GET, and what each gives; ``models`` are the names of what is served."""
        self._body = document(doors, others, models)

    async def all(self, request: Request) -> Response:
        """Return it."""
        return JSONResponse(self._body)


def document(
    doors: Mapping[str, Dialect | Question[Any]], others: Mapping[str, str], models: Collection[str]
) -> dict[str, Any]:
    """Return the document."""
    forms = {path: form for path, door in doors.items() if (form := getattr(door, "request", None)) is not None}
    schemas, components = msgspec.json.schema_components(forms.values(), ref_template="#/components/schemas/{name}")
    bodies = dict(zip(forms, schemas, strict=True))
    for path, body in bodies.items():
        properties: dict[str, Any] = components[body["$ref"].rpartition("/")[2]]["properties"]
        properties |= _asking_nothing(doors[path])
        if "model" in properties:
            properties["model"] = {"type": "string", "enum": sorted(models)}
    paths: dict[str, Any] = {}
    for path, door in doors.items():
        streams = hasattr(door, "writer")
        answer: dict[str, Any] = {"application/json": {"schema": {"type": "object"}}}
        if streams:
            answer[getattr(door, "streams", "text/event-stream")] = {"schema": {"type": "string"}}
        paths[path] = {
            "post": {
                "summary": _sentence(door),
                "requestBody": {
                    "required": True,
                    "content": {"application/json": {"schema": bodies.get(path, {"type": "object"})}},
                },
                "responses": {"200": {"description": "The answer.", "content": answer}, **_refusals()},
            }
        }
    for path, what in others.items():
        names = [{"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}]
        refusals = {key: value for key, value in _refusals().items() if key in ("401", "403", "404", "503")}
        paths[path] = {
            "get": {
                "summary": what,
                "parameters": names if "{name}" in path else [],
                "responses": {"200": {"description": what, "content": {_KINDS.get(path, _JSON): {}}}, **refusals},
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {"title": "edgepack serve", "version": version("edgepack")},
        "paths": paths,
        "components": {
            "schemas": {**components, "Error": {"type": "object"}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"token": []}],
    }


def _asking_nothing(door: object) -> dict[str, Any]:
    """Return the fields of a door that are taken and ask for nothing, some with certain values alone."""
    neutral: fields.Neutral = getattr(door, "neutral", {})
    passed: frozenset[str] = getattr(door, "passed", frozenset())
    return {name: {"enum": list(values)} for name, values in neutral.items()} | {name: {} for name in sorted(passed)}


def _refusals() -> dict[str, Any]:
    content = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    return {str(status): {"description": what, "content": content} for status, what in _REFUSALS.items()}


def _sentence(door: object) -> str:
    return (type(door).__doc__ or "").strip().splitlines()[0]
