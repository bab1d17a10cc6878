"""The server as one ASGI application: guards, doors and hosting, put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from starlette.applications import Starlette
from starlette.routing import Route

from edgepack_serve.doors.openai_chat import OpenAIChat
from edgepack_serve.exchange import Door
from edgepack_serve.guard.bodies import Limits
from edgepack_serve.hosting.host import Host

DIALECTS = {
    "/v1/chat/completions": OpenAIChat(),
}
"""The doors that answer with a model, each a dialect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What every request is held to: ``timeout_s`` for an answer, ``slow_s`` for a client that takes nothing."""

    limits: Limits = field(default_factory=Limits)
    timeout_s: float = 600.0
    slow_s: float = 30.0


def make_app(host: Host, terms: Terms) -> Starlette:
    """Return the application that serves the models of a host."""
    routes = [
        Route(path, Door(dialect, host, terms.limits, terms.timeout_s, terms.slow_s), methods=["POST"])
        for path, dialect in DIALECTS.items()
    ]
    return Starlette(routes=routes)
