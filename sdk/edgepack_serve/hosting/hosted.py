"""One model that is served: its bundle, whether it is loaded, and how many requests it has."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from math import ceil
from time import monotonic
from typing import Literal

from edgepack import Manifest, Model, Result
from edgepack.device.planning import Candidate
from edgepack.loading import Where
from edgepack_serve.refusals import RefusedError

State = Literal["loaded", "loading", "idle"]
_PATIENCE = 600
"""Seconds, the longest that a client is told to wait."""


@dataclass(slots=True, eq=False)
class Hosted:
    """``where`` is what it is loaded from, looked up at each load; ``choice`` is what the plan at the start chose.

    ``manifest`` is what the bundle says of itself, ``tools`` whether its template has a form for their calls, pinned
    models stay loaded. The rest changes while it is served.
    """

    name: str
    where: Where
    manifest: Manifest
    bundle_id: str
    choice: Candidate
    tools: bool = False
    pinned: bool = False
    model: Model | None = None
    loading: asyncio.Task[Model] | None = None
    requests: int = 0
    used: float = field(default_factory=monotonic)
    keep_s: float | None = None
    """How long the last request wanted it to stay loaded, None where it did not say."""
    seconds: float = 1.0
    """What a request takes, of which the newest count most."""
    tokens_per_second: float | None = None

    @property
    def state(self) -> State:
        """Whether it is loaded."""
        return "loaded" if self.model is not None else "loading" if self.loading is not None else "idle"

    @property
    def parallel(self) -> int:
        """How many requests can be answered at a time."""
        return self.choice.options.sequences

    @property
    def running(self) -> int:
        """How many requests are answered now; the others wait."""
        return min(self.requests, self.parallel)

    def admit(self, queue: int) -> None:
        """Count a request in. Raises ``RefusedError`` where too many wait already."""
        if self.requests >= self.parallel + queue:
            after = min(_PATIENCE, ceil(self.seconds * (1 + queue / self.parallel)))
            raise RefusedError(
                429,
                f"{self.requests} requests wait for {self.name} already.",
                hint=f"Ask again in {after} s.",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(after)},
            )
        self.requests += 1

    def leave(self, began: float, keep_s: float | None) -> None:
        """Count a request out that began at ``monotonic`` time, and wants the model to stay loaded for so long."""
        self.keep_s = keep_s
        self.requests -= 1
        self.used = monotonic()
        self.seconds += 0.2 * (self.used - began - self.seconds)

    def told(self, result: Result) -> None:
        """Remember how fast an answer was."""
        if (rate := result.timings.decode_tps) is not None:
            self.tokens_per_second = rate
