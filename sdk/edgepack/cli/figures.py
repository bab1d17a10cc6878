"""The figures of an answer, for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.decoding.results import Result

_ENDS = {"stop": "", "length": "cut at its limit", "cancelled": "stopped"}


def line(result: Result) -> str:
    """Return the figures that one reads after each answer: tokens, tokens a second, seconds to the first."""
    usage, timings = result.usage, result.timings
    parts = [
        f"{usage.completion_tokens} tokens{_rate(timings.decode_tps)}",
        "" if timings.ttft_s is None else f"the first after {timings.ttft_s:.2f} s",
        _ENDS[result.finish_reason],
    ]
    return "; ".join(filter(None, parts))


def rows(result: Result, context: int) -> list[tuple[str, str]]:
    """Return names and values of all figures. ``context`` is how many tokens the model was loaded for."""
    usage, timings = result.usage, result.timings
    sampling = {} if result.sampling is None else result.sampling.to_dict()
    cached = f", {usage.cached_tokens} of them cached" if usage.cached_tokens else ""
    cut = f", {usage.truncated_tokens} more left out" if usage.truncated_tokens else ""
    guessed = f"{usage.drafted_tokens} tokens, {usage.accepted_tokens} came true" if usage.drafted_tokens else ""
    found = [
        ("answer", line(result)),
        ("prompt", f"{usage.prompt_tokens} tokens{cached}{cut}{_rate(timings.prefill_tps)}"),
        ("guessed", guessed),
        ("context", f"{usage.prompt_tokens + usage.completion_tokens} of {context} tokens"),
        ("sampling", ", ".join(f"{name} {value}" for name, value in sampling.items())),
    ]
    return [(name, value) for name, value in found if value]


def _rate(tokens_per_second: float | None) -> str:
    return "" if tokens_per_second is None else f", {tokens_per_second:.1f} a second"
