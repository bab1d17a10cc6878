"""What the server counts, and the text in which Prometheus reads it (exposition format 0.0.4).

Names of models and of doors are the only labels, and both are the server's own: no client can add one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

Labels = tuple[tuple[str, str], ...]
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_HELP = {
    "requests_total": "Requests that were answered or refused, by door and status; 0: the client went before.",
    "request_seconds": "Seconds from a request's head to the end of its answer, by door.",
    "first_token_seconds": "Seconds from a request's turn to its first token, by model.",
    "prompt_tokens_total": "Tokens of prompts, by model.",
    "cached_tokens_total": "Tokens of prompts that were in the KV cache already, by model.",
    "completion_tokens_total": "Tokens of answers, by model.",
    "loads_total": "Times that a model was loaded.",
    "unloads_total": "Times that a model was unloaded, or given up after its engine failed.",
}


@dataclass(slots=True)
class _Histogram:
    counts: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0


class Figures:
    """Counters and histograms by name and labels."""

    def __init__(self) -> None:
        self._counters: dict[tuple[str, Labels], float] = {}
        self._histograms: dict[tuple[str, Labels], _Histogram] = {}

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        key = name, tuple(labels.items())
        self._counters[key] = self._counters.get(key, 0) + amount

    def took(self, name: str, seconds: float, **labels: str) -> None:
        """Add a measured time to a histogram."""
        found = self._histograms.setdefault((name, tuple(labels.items())), _Histogram())
        found.counts[bisect_left(_SECONDS, seconds)] += 1
        found.total += seconds

    def text(self, gauges: Iterable[tuple[str, str, Mapping[str, str], float]]) -> str:
        """Return all of it; ``gauges`` are what is so now: name, help, labels, value, those of a name together."""
        lines: list[str] = []
        lines += self._counted()
        lines += self._timed()
        told: set[str] = set()
        for name, help, labels, value in gauges:
            if name not in told:
                lines += _head(name, help, "gauge")
                told.add(name)
            lines.append(_line(name, tuple(labels.items()), value))
        return "\n".join([*lines, ""])

    def _counted(self) -> Iterator[str]:
        for name in sorted({name for name, _ in self._counters}):
            yield from _head(name, _HELP[name], "counter")
            for (each, labels), value in self._counters.items():
                if each == name:
                    yield _line(name, labels, value)

    def _timed(self) -> Iterator[str]:
        for name in sorted({name for name, _ in self._histograms}):
            yield from _head(name, _HELP[name], "histogram")
            for (each, labels), found in self._histograms.items():
                if each != name:
                    continue
                below = 0
                for bound, count in zip((*map(str, _SECONDS), "+Inf"), found.counts, strict=True):
                    below += count
                    yield _line(f"{name}_bucket", (*labels, ("le", bound)), below)
                yield _line(f"{name}_sum", labels, found.total)
                yield _line(f"{name}_count", labels, below)


def _head(name: str, help: str, kind: str) -> Iterator[str]:
    yield f"# HELP edgepack_{name} {help}"
    yield f"# TYPE edgepack_{name} {kind}"


def _line(name: str, labels: Labels, value: float) -> str:
    inside = ",".join(f'{key}="{_escaped(text)}"' for key, text in labels)
    return f"edgepack_{name}{{{inside}}} {value:g}" if inside and value < 1e6 else _long(name, inside, value)


def _long(name: str, inside: str, value: float) -> str:
    """Return a line whose number %g would round."""
    number = str(int(value)) if value == int(value) else repr(value)
    return f"edgepack_{name}{{{inside}}} {number}" if inside else f"edgepack_{name} {number}"


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
