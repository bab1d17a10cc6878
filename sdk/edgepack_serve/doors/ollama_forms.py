"""What Ollama's endpoints have in common: a request's options, names of models, how long an answer took, errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from edgepack import EdgepackError, Result, TokenLogprob
from edgepack.decoding.options import ChatOptions
from edgepack.errors import UsageError
from edgepack_serve.asked import Body, Head
from edgepack_serve.doors import fields

LATEST = ":latest"
_UNBOUNDED = 1 << 30
"""Tokens of an answer that only the context ends."""

# By the names of the SDK.
_SAMPLING = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "seed": "seed",
    "repeat_penalty": "repetition_penalty",
    "stop": "stop",
}
# How a model is loaded, which the server was told, and ways of sampling that edgepack does not have.
_NEUTRAL: fields.Neutral = {
    "frequency_penalty": (None, 0),
    "main_gpu": (None,),
    "mirostat": (None, 0),
    "mirostat_eta": (None,),
    "mirostat_tau": (None,),
    "num_batch": (None,),
    "num_gpu": (None,),
    "num_keep": (None,),
    "num_thread": (None,),
    "numa": (None, False),
    "penalize_newline": (None,),
    "presence_penalty": (None, 0),
    "repeat_last_n": (None, -1),
    "tfs_z": (None, 1),
    "typical_p": (None, 1),
    "use_mlock": (None, False),
    "use_mmap": (None,),
}


class Generating(msgspec.Struct, kw_only=True):
    """The fields that a conversation and a text share."""

    model: str
    stream: bool = True
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    keep_alive: float | str | None = None


def known(body: Body, form: type[msgspec.Struct], neutral: Iterable[str]) -> dict[str, object]:
    """Return the fields of a body that the interface documents: it passes over all others."""
    names = {field.encode_name for field in msgspec.structs.fields(form)}.union(neutral)
    return {name: value for name, value in body.items() if name in names}


def plain(name: str) -> str:
    """Return the name of a model without the tag that every name has here."""
    return name.removesuffix(LATEST)


def options_of(asked: Generating) -> ChatOptions:
    """Return the options of the SDK. Raises ``UsageError`` that names what cannot be honoured."""
    given = asked.options or {}
    for name, values in _NEUTRAL.items():
        fields.check_neutral(f"options.{name}", given.get(name), values)
    options: Any = {to: given[name] for name, to in _SAMPLING.items() if given.get(name) is not None}
    if (most := given.get("num_predict")) is not None:
        options["max_tokens"] = _UNBOUNDED if most in (-1, -2) else most
    if asked.format == "json":
        options["json_schema"] = True
    elif isinstance(asked.format, dict):
        options["json_schema"] = asked.format
    elif asked.format:
        raise UsageError(f"format is {asked.format!r}.", hint='It is "json", or a schema.')
    if asked.think is not None:
        options["thinking"] = asked.think
    if asked.logprobs:
        options["logprobs"], options["n_best"] = True, asked.top_logprobs or 0
    found: ChatOptions = options
    return found


def context_of(asked: Generating) -> int | None:
    """Return the tokens that a context has to hold. Raises ``UsageError`` for what is no number."""
    value = (asked.options or {}).get("num_ctx")
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value > 0):
        return value
    raise UsageError(f"options.num_ctx is {value!r}.", hint="It is a number of tokens.")


def keep_of(asked: Generating) -> float | None:
    """Return the seconds that the model is to stay loaded afterwards, None where the server decides, infinity for
    ever. Raises ``UsageError`` for what is no duration."""
    return None if asked.keep_alive is None else _seconds(asked.keep_alive)


def loaded(keep_s: float | None) -> dict[str, Any]:
    """Return the fields of an answer to a request that has a model loaded, or unloaded, and asks nothing."""
    return {"done": True, "done_reason": "unload" if keep_s == 0 else "load"}


def ended(result: Result) -> dict[str, Any]:
    """Return the fields of the last piece: why it ended, tokens, and nanoseconds."""
    used, times = result.usage, result.timings
    prompt_s = (used.prompt_tokens - used.cached_tokens) / times.prefill_tps if times.prefill_tps else 0.0
    answer_s = (used.completion_tokens - 1) / times.decode_tps if times.decode_tps else 0.0
    return {
        "done": True,
        "done_reason": "length" if result.finish_reason == "length" else "stop",
        "total_duration": _nanoseconds((times.ttft_s or 0.0) + answer_s),
        "prompt_eval_count": used.prompt_tokens,
        "prompt_eval_duration": _nanoseconds(prompt_s),
        "eval_count": used.completion_tokens,
        "eval_duration": _nanoseconds(answer_s),
    }


def made(name: str, head: Head) -> dict[str, Any]:
    """Return the fields that every piece begins with."""
    return {"model": name, "created_at": datetime.fromtimestamp(head.created, UTC).isoformat()}


def logprobs(tokens: Sequence[TokenLogprob] | None) -> dict[str, Any]:
    """Return the field of the tokens' logarithms, none where they were not asked for."""
    if tokens is None:
        return {}
    return {
        "logprobs": [
            {
                "token": each.text,
                "logprob": each.logprob,
                "top_logprobs": [{"token": best.text, "logprob": best.logprob} for best in each.best],
            }
            for each in tokens
        ]
    }


def fault(error: EdgepackError) -> dict[str, Any]:
    """Return an error in Ollama's form."""
    return {"error": str(error)}


def line(data: Mapping[str, object]) -> bytes:
    """Return a line of a stream."""
    return msgspec.json.encode(data) + b"\n"


_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}


def _seconds(value: float | str) -> float:
    """Return a duration as Go writes it, "1h30m", or a number of seconds; one below zero is for ever."""
    number: float | None
    try:
        number = float(value)
    except ValueError:
        number = _spelt(str(value))
    if number is None or number != number:
        raise UsageError(f"keep_alive is {value!r}.", hint='It is a number of seconds, or a text such as "5m".')
    return float("inf") if number < 0 else number


def _spelt(text: str) -> float | None:
    import re

    parts = re.findall(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)", text)
    sign = -1.0 if text.startswith("-") else 1.0
    if not parts or "".join(number + unit for number, unit in parts) != text.removeprefix("-"):
        return None
    return sign * sum(float(number) * _UNITS[unit] for number, unit in parts)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * 1e9)
