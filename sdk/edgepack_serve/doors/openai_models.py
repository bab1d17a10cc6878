"""GET /v1/models and /v1/models/{name}: what is served."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack_serve.doors import openai_forms
from edgepack_serve.hosting.host import Host
from edgepack_serve.hosting.hosted import Hosted
from edgepack_serve.refusals import RefusedError


class OpenAIModels:
    """Answers what models there are."""

    def __init__(self, host: Host, started: int) -> None:
        self._host, self._started = host, started

    async def all(self, request: Request) -> Response:
        """List them."""
        data = [self._one(each) for each in self._host.models.values()]
        return JSONResponse({"object": "list", "data": data})

    async def one(self, request: Request) -> Response:
        """Describe one."""
        try:
            return JSONResponse(self._one(self._host.find(request.path_params["name"])))
        except RefusedError as error:
            return JSONResponse(openai_forms.fault(error, error.status, ("model",)), error.status)

    def _one(self, hosted: Hosted) -> dict[str, Any]:
        return {
            "id": hosted.name,
            "object": "model",
            "created": self._started,
            "owned_by": hosted.manifest.source.name or "edgepack",
            "max_model_len": hosted.choice.options.context,
        }
