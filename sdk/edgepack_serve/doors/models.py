"""GET /v1/models and /v1/models/{name}: what is served, as clients of OpenAI's interface and of Anthropic's know it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack_serve.doors import anthropic, openai_forms
from edgepack_serve.hosting.host import Host
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.refusals import RefusedError

_ANTHROPIC = "anthropic-version"
"""The header that every client of Anthropic's sends, and no other."""


class Models:
    """Answers what models there are. ``started`` is when the server began, in seconds since 1970."""

    def __init__(self, host: Host, started: int) -> None:
        self._host, self._started = host, started

    async def all(self, request: Request) -> Response:
        """List them, all on one page."""
        data = [self._one(request, each) for each in self._host.models.values()]
        if _ANTHROPIC not in request.headers:
            return JSONResponse({"object": "list", "data": data})
        ids = [each["id"] for each in data] or [None]
        return JSONResponse({"data": data, "has_more": False, "first_id": ids[0], "last_id": ids[-1]})

    async def one(self, request: Request) -> Response:
        """Describe one."""
        try:
            return JSONResponse(self._one(request, self._host.find(request.path_params["name"])))
        except RefusedError as error:
            fault = anthropic.fault if _ANTHROPIC in request.headers else openai_forms.fault
            return JSONResponse(fault(error, error.status), error.status)

    def _one(self, request: Request, hosted: Hosted) -> dict[str, Any]:
        if _ANTHROPIC in request.headers:
            began = datetime.fromtimestamp(self._started, UTC).isoformat().replace("+00:00", "Z")
            return {"type": "model", "id": hosted.name, "display_name": hosted.name, "created_at": began}
        return {
            "id": hosted.name,
            "object": "model",
            "created": self._started,
            "owned_by": hosted.manifest.source.name or "edgepack",
            "max_model_len": hosted.choice.options.context,
        }
