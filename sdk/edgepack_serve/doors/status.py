"""GET /status.json: the models, and the memory, for the page that shows them."""

from __future__ import annotations

from importlib.metadata import version
from time import monotonic
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack.device.hardware import detect
from edgepack_serve.doors.metrics import resident_bytes
from edgepack_serve.hosting.host import Host
from edgepack_serve.hosting.hosted import Hosted


class Status:
    """Answers how the server is."""

    def __init__(self, host: Host) -> None:
        self._host, self._began = host, monotonic()

    async def all(self, request: Request) -> Response:
        """Return all of it."""
        memory = {"available_bytes": detect().memory_available or None, "resident_bytes": resident_bytes()}
        models = [self._one(each) for each in self._host.models.values()]
        uptime = round(monotonic() - self._began, 1)
        body = {"version": version("edgepack"), "models": models, "memory": memory, "uptime_s": uptime}
        return JSONResponse(body, headers={"Cache-Control": "no-store"})

    def _one(self, hosted: Hosted) -> dict[str, Any]:
        choice, model, manifest = hosted.choice, hosted.model, hosted.manifest
        running, chat = hosted.running, manifest.chat
        return {
            "name": hosted.name,
            "state": hosted.state,
            "bundle_id": hosted.bundle_id if model is None else model.bundle_id,
            "variant": choice.variant if model is None else model.variant.id,
            "backend": choice.runtime if model is None else model.backend,
            "engine": choice.engine,
            "device": choice.device if model is None else model.device,
            "context": choice.options.context if model is None else model.context,
            "parallel": hosted.parallel,
            "reason": choice.reason,
            "memory_bytes": choice.memory.total,
            "thinks": chat is not None and chat.thinking is not None,
            "tools": hosted.tools,
            "system_role": chat is not None and "system" in chat.roles,
            "running": running,
            "waiting": hosted.requests - running,
            "tokens_per_second": hosted.tokens_per_second,
            "licence": manifest.license.id,
            "pinned": hosted.pinned,
            "embeds": manifest.embedding is not None,
        }
