"""GET /metrics: the figures, as Prometheus reads them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from starlette.requests import Request
from starlette.responses import Response

from edgepack_serve.figures import CONTENT_TYPE, Figures
from edgepack_serve.hosting.host import Host

Gauge = tuple[str, str, Mapping[str, str], float]


class Metrics:
    """Answers with everything that is counted, and what is so now."""

    def __init__(self, host: Host, figures: Figures) -> None:
        self._host, self._figures = host, figures

    async def all(self, request: Request) -> Response:
        """Return the text."""
        return Response(self._figures.text(self._gauges()), media_type=CONTENT_TYPE)

    def _gauges(self) -> Iterator[Gauge]:
        models = self._host.models.values()
        for each in models:
            yield "requests_running", "Requests that are answered now.", {"model": each.name}, each.running
        for each in models:
            waiting = each.requests - each.running
            yield "requests_waiting", "Requests that wait for their turn.", {"model": each.name}, waiting
        for each in models:
            yield "model_loaded", "Whether a model is loaded.", {"model": each.name}, each.model is not None
        if (resident := resident_bytes()) is not None:
            yield "resident_bytes", "Memory of the server's process.", {}, resident


def resident_bytes() -> int | None:
    """Return the memory that this process has in RAM, None where the system does not tell."""
    import os

    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None
