"""A line of log for each request, and its figures: when, what, how long. What was said is never in it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import monotonic
from typing import Literal, cast

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgepack import Result
from edgepack_serve.figures import Figures

log = logging.getLogger("edgepack.serve")
Outcome = Literal["answered", "cut", "gone", "slow"]
_KEY = "edgepack.record"
_OFTEN = ("/healthz", "/readyz", "/metrics", "/status.json")
"""Doors that programs ask every few seconds."""


@dataclass(slots=True)
class Record:
    """What is known of a request: the ``door`` is a path of the server's own, or "other". ``outcome``: "cut" is an
    error after the answer had begun, "gone" a client that went, "slow" one that did not read."""

    method: str = ""
    door: str = "other"
    model: str | None = None
    status: int = 0
    outcome: Outcome = "answered"
    stream: bool = False
    error: str | None = None
    began: float = field(default_factory=monotonic)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    first_token_s: float | None = None

    @classmethod
    def of(cls, scope: Scope) -> Record:
        """Return the record of a request."""
        return cast(Record, scope.setdefault(_KEY, cls()))

    def told(self, results: Sequence[Result]) -> None:
        """Note what the answers took, where there are any."""
        if not results:
            return
        self.prompt_tokens = results[0].usage.prompt_tokens
        self.cached_tokens = results[0].usage.cached_tokens
        self.completion_tokens = sum(each.usage.completion_tokens for each in results)
        self.first_token_s = results[0].timings.ttft_s


class Recorded:
    """Records each request that an application gets."""

    def __init__(self, app: ASGIApp, figures: Figures, door_of: Callable[[str], str]) -> None:
        """``door_of`` gives the door of a path, of which there are few whatever clients ask for."""
        self._app, self._figures, self._door_of = app, figures, door_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it ended."""
        record = scope[_KEY] = Record(scope["method"], self._door_of(scope["path"]))

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, sending)
        finally:
            self._note(record)

    def _note(self, record: Record) -> None:
        seconds, figures = monotonic() - record.began, self._figures
        figures.count("requests_total", door=record.door, status=str(record.status))
        figures.took("request_seconds", seconds, door=record.door)
        fields: dict[str, object] = {
            "method": record.method,
            "door": record.door,
            "model": record.model,
            "status": record.status,
            "outcome": "failed" if record.status >= 500 else "refused" if record.status >= 400 else record.outcome,
            "error": record.error,
            "seconds": round(seconds, 4),
        }
        if record.model is not None and record.completion_tokens:
            figures.count("prompt_tokens_total", record.prompt_tokens, model=record.model)
            figures.count("cached_tokens_total", record.cached_tokens, model=record.model)
            figures.count("completion_tokens_total", record.completion_tokens, model=record.model)
            if record.first_token_s is not None:
                figures.took("first_token_seconds", record.first_token_s, model=record.model)
            fields |= {
                "stream": record.stream,
                "prompt_tokens": record.prompt_tokens,
                "cached_tokens": record.cached_tokens,
                "completion_tokens": record.completion_tokens,
            }
        level = logging.DEBUG if record.door in _OFTEN and record.status == 200 else logging.INFO
        log.log(level, "request", extra={"fields": {key: value for key, value in fields.items() if value is not None}})
