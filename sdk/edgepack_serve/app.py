"""The server as one ASGI application: guards, doors and hosting, put together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import time
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from edgepack_serve.asked import Dialect, Question
from edgepack_serve.doors import openai_forms
from edgepack_serve.doors.anthropic import AnthropicCount, AnthropicMessages
from edgepack_serve.doors.document import Document
from edgepack_serve.doors.health import Health
from edgepack_serve.doors.metrics import Metrics
from edgepack_serve.doors.models import Models
from edgepack_serve.doors.ollama import OllamaChat, OllamaGenerate
from edgepack_serve.doors.ollama_models import OllamaEmbed, OllamaModels, OllamaShow
from edgepack_serve.doors.openai_chat import OpenAIChat
from edgepack_serve.doors.openai_completions import OpenAICompletions
from edgepack_serve.doors.openai_embeddings import OpenAIEmbeddings
from edgepack_serve.doors.openai_responses import OpenAIResponses
from edgepack_serve.doors.page import Page
from edgepack_serve.doors.status import Status
from edgepack_serve.exchange import Door, QuestionDoor, Terms
from edgepack_serve.figures import Figures
from edgepack_serve.guard.gate import Gate
from edgepack_serve.guard.names import Names
from edgepack_serve.hosting.host import Host
from edgepack_serve.records import Recorded
from edgepack_serve.refusals import RefusedError
from edgepack_serve.underway import Underway

DIALECTS: Mapping[str, Dialect] = {
    "/v1/chat/completions": OpenAIChat(),
    "/v1/completions": OpenAICompletions(),
    "/v1/responses": OpenAIResponses(),
    "/v1/messages": AnthropicMessages(),
    "/api/chat": OllamaChat(),
    "/api/generate": OllamaGenerate(),
}
"""Where a model answers with a text, and in which dialect."""

QUESTIONS: Mapping[str, Question[Any]] = {
    "/v1/embeddings": OpenAIEmbeddings(),
    "/v1/messages/count_tokens": AnthropicCount(),
    "/api/embed": OllamaEmbed(),
}
"""Where a model is asked for something else."""

OPEN = ("/", "/status", "/healthz", "/readyz")
"""What needs no token, beside /static/: what the page is made of, and whether the server lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guards:
    """Who may ask."""

    names: Names
    token: str | None = None


def make_app(host: Host, underway: Underway, figures: Figures, guards: Guards, terms: Terms) -> ASGIApp:
    """Return the application that serves the models of a host."""
    models, page, health = Models(host, int(time())), Page(), Health(underway)
    tags = OllamaModels(host, int(time()))
    asked: dict[str, tuple[str, Callable[[Request], Any]]] = {
        "/v1/models": ("The models that are served.", models.all),
        "/v1/models/{name}": ("One of the models that are served.", models.one),
        "/api/tags": ("The models that are served.", tags.tags),
        "/api/ps": ("The models that are loaded.", tags.running),
        "/api/version": ("The version of edgepack.", tags.version),
        "/healthz": ("Whether the server lives.", health.lives),
        "/readyz": ("Whether the server takes requests.", health.ready),
        "/metrics": ("Figures for Prometheus.", Metrics(host, figures).all),
        "/status.json": ("The models and the memory.", Status(host).all),
        "/": ("The page.", page.index),
        "/status": ("The page of the server's status.", page.status),
        "/static/{name}": ("A file of the page.", page.file),
    }
    document = Document({**DIALECTS, **QUESTIONS}, {path: what for path, (what, _) in asked.items()}, host.models)
    routes = [
        *(Route(path, Door(each, host, underway, terms), methods=["POST"]) for path, each in DIALECTS.items()),
        *(Route(path, QuestionDoor(each, host, underway, terms), methods=["POST"]) for path, each in QUESTIONS.items()),
        *(Route(path, endpoint, methods=["GET"]) for path, (_, endpoint) in asked.items()),
        Route("/api/show", OllamaShow(tags, underway, terms), methods=["POST"]),
        Route("/openapi.json", document.all, methods=["GET"]),
    ]
    app = Starlette(routes=routes, exception_handlers={HTTPException: _nowhere})
    app.router.redirect_slashes = False
    known = frozenset(route.path for route in routes)
    gate = Gate(app, guards.names, guards.token, OPEN, _refused)
    return Recorded(gate, figures, lambda path: _door_of(path, known))


def _refused(path: str, error: RefusedError) -> ASGIApp:
    """Return the answer to a request that the gate refuses, in the form of the door that it asked for."""
    door = DIALECTS.get(path) or QUESTIONS.get(path)
    body = openai_forms.fault(error, error.status) if door is None else door.fault(error, error.status)
    return JSONResponse(body, error.status, error.headers)


async def _nowhere(request: Request, error: Exception) -> Response:
    """Answer for a path or a method that there is not."""
    status = error.status_code if isinstance(error, HTTPException) else 404
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    what = f"{request.method} is not for this path." if status == 405 else "There is nothing at this path."
    refusal = RefusedError(status, what, hint="GET /openapi.json lists what there is.", code="not_found")
    return JSONResponse(openai_forms.fault(refusal, status), status, headers)


def _door_of(path: str, known: frozenset[str]) -> str:
    if path in known:
        return path
    parent, _, name = path.rpartition("/")
    named = f"{parent}/{{name}}"
    return named if name and named in known else "other"
