"""GET /healthz and /readyz: whether the server lives, and whether it takes requests."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from edgepack_serve.underway import Underway


class Health:
    """Answers for a watchdog and for a balancer of load. They tell nothing of models, and need no token."""

    def __init__(self, underway: Underway) -> None:
        self._underway = underway

    async def lives(self, request: Request) -> Response:
        """Say that it answers; 503 where an engine does not stop."""
        stuck = self._underway.stuck
        return JSONResponse({"status": "stuck" if stuck else "ok"}, 503 if stuck else 200)

    async def ready(self, request: Request) -> Response:
        """Say whether it takes requests: 503 while it stops."""
        stopping = self._underway.stopping
        return JSONResponse({"status": "stopping" if stopping else "ready"}, 503 if stopping else 200)
