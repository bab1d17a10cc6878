"""How fast a model on a server answers whoever asks it from here: the network and other people's questions included.

Prompts are texts, since a server takes no token ids: common words, of which most tokenizers make one token each. Each
run begins with another number, so that a server that keeps the beginnings of prompts has to evaluate the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from edgepack.errors import EngineError, UsageError
from edgepack.language_model import LanguageModel, Served
from edgepack.measuring.bench import REPEATS, WARM_UP, Spread, gaps_ms, percentile

if TYPE_CHECKING:
    from edgepack.decoding.results import Result

_WORDS = (
    "the", "of", "and", "to", "in", "is", "was", "that", "for", "with", "as", "on", "be", "at", "by", "from", "this",
    "have", "not", "are", "or", "an", "they", "which", "one", "all", "would", "there", "their", "what", "so", "up",
    "out", "if", "about", "who", "get", "go", "when", "make", "can", "like", "time", "no", "just", "know", "take",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ServedReport:
    """What a model on a server reached; ``_s`` are seconds by this machine's clock, ``_tps`` tokens a second.

    ``prompt_tokens`` and ``answer_tokens`` are the medians of what the server counted: an answer may end by itself.
    ``prefill_tps`` is the server's own figure, None where it tells none, and so is ``decode_tps`` where it tells one,
    else (n - 1) / (t_last - t_first) over the n tokens that it counted. ``between_p50_ms`` and ``between_p95_ms`` are
    between pieces of the stream, which may be several tokens.
    """

    served: Served
    prompt_tokens: int
    answer_tokens: int
    repeats: int
    ttft_s: Spread
    answer_s: Spread
    prefill_tps: Spread | None
    decode_tps: Spread | None
    between_p50_ms: Spread | None
    between_p95_ms: Spread | None

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class _Run:
    times: list[float]
    answer_s: float
    result: Result


def bench_served(
    model: LanguageModel,
    *,
    prompt_tokens: int = 128,
    decode_tokens: int = 64,
    repeats: int = REPEATS,
    progress: Callable[[], None] | None = None,
) -> ServedReport:
    """Ask a model on a server ``WARM_UP + repeats`` times, one after the other, and measure the last ``repeats``.

    ``progress`` is called after each. Raises ``UsageError`` for a model that is on no server, or counts that measure
    nothing, ``EngineError`` for a server that answers with nothing, and as ``LanguageModel.stream``.
    """
    served = model.setup
    if not isinstance(served, Served):
        raise UsageError("The model is on no server.", hint="Measure its bundle: edgepack bench BUNDLE.")
    if prompt_tokens < 1 or decode_tokens < 2 or repeats < 1:
        raise UsageError("A bench needs a prompt of at least 1 token, an answer of at least 2, and a run.")
    runs = []
    for number in range(WARM_UP + repeats):
        run = _run(model, _prompt(number, prompt_tokens), decode_tokens)
        if number >= WARM_UP:
            runs.append(run)
        if progress is not None:
            progress()
    gaps = [gaps_ms(run.times) for run in runs if len(run.times) > 1]
    return ServedReport(
        served=served,
        prompt_tokens=round(median(run.result.usage.prompt_tokens for run in runs)),
        answer_tokens=round(median(run.result.usage.completion_tokens for run in runs)),
        repeats=repeats,
        ttft_s=Spread.of([run.times[0] for run in runs]),
        answer_s=Spread.of([run.answer_s for run in runs]),
        prefill_tps=_spread([run.result.timings.prefill_tps for run in runs]),
        decode_tps=_spread([run.result.timings.decode_tps for run in runs]),
        between_p50_ms=_spread([percentile(each, 50) for each in gaps]),
        between_p95_ms=_spread([percentile(each, 95) for each in gaps]),
    )


def _prompt(number: int, tokens: int) -> str:
    words = [_WORDS[(number * 17 + place * 31) % len(_WORDS)] for place in range(max(1, tokens - 2))]
    return " ".join([f"{number + 1}.", *words])


def _run(model: LanguageModel, prompt: str, tokens: int) -> _Run:
    started = time.perf_counter()
    with model.stream(prompt, max_tokens=tokens, temperature=0) as stream:
        times = [time.perf_counter() - started for _ in stream]
    answer_s = time.perf_counter() - started
    if not times:
        raise EngineError("The server answers a bench with nothing.", hint="Ask it by: edgepack compare.")
    return _Run(times, answer_s, stream.result)


def _spread(values: list[float | None] | list[float]) -> Spread | None:
    """Return a spread of the values that there are, None where there is none."""
    reached = [value for value in values if value is not None]
    return Spread.of(reached) if reached else None
