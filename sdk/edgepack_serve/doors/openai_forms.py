"""What OpenAI's endpoints have in common: the fields of a request that are asked of the SDK, usage, errors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import msgspec

from edgepack import EdgepackError, Result, TokenLogprob
from edgepack.decoding.options import ChatOptions
from edgepack.errors import UsageError
from edgepack_serve.asked import Body
from edgepack_serve.doors.fields import named
from edgepack_serve.refusals import code_of

PASSED = frozenset({"user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"})
"""Fields about whoever asks, which mean nothing to an answer."""

DONE = b"data: [DONE]\n\n"
ALIVE = b": waiting\n\n"
"""A comment, which clients of server-sent events pass over."""

_MOST_ANSWERS = 16
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}


# What the SDK says better where it is not kept.
Count = Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1})]


class StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    """What a stream is to have beside its pieces."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Sampled(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """The fields that OpenAI's endpoints for texts share, and edgepack's own beside them, as the SDK calls them."""

    model: str
    n: Annotated[int, msgspec.Meta(extra_json_schema={"minimum": 1, "maximum": 16})] = 1
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    regex: str | None = None
    grammar: str | None = None
    prompt_lookup: bool | None = None
    draft: bool | None = None
    on_overflow: str | None = None
    reuse: str | None = None


SAMPLED = (
    "temperature", "top_p", "seed", "stop", "top_k", "min_p", "repetition_penalty", "regex", "grammar",
    "prompt_lookup", "draft", "on_overflow", "reuse",
)  # fmt: skip
"""The fields of ``Sampled`` that are options of the SDK under the same name."""


def options_of(asked: Sampled) -> ChatOptions:
    """Return the options of the SDK that a request names as the SDK does."""
    given: Any = {name: value for name in SAMPLED if (value := getattr(asked, name)) is not None}
    options: ChatOptions = given
    return options


def usage(results: Sequence[Result]) -> dict[str, Any]:
    """Return the usage of the answers to one request; its prompt counts once."""
    first = results[0].usage
    said = sum(each.usage.completion_tokens for each in results)
    return {
        "prompt_tokens": first.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": first.prompt_tokens + said,
        "prompt_tokens_details": {"cached_tokens": first.cached_tokens},
        "completion_tokens_details": {"reasoning_tokens": sum(each.usage.reasoning_tokens for each in results)},
    }


def fault(error: EdgepackError, status: int, known: Iterable[str] = ()) -> dict[str, Any]:
    """Return the body of an error in OpenAI's form; ``known`` are the fields of the request."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    place = named(error.message, frozenset(known))
    return {"error": {"message": str(error), "type": kind, "param": place, "code": code_of(error)}}


def logprob(token: TokenLogprob) -> dict[str, Any]:
    """Return a token's logprob with its alternatives."""
    best = [_token(each.text, each.logprob) for each in token.best]
    return {**_token(token.text, token.logprob), "top_logprobs": best}


def event(data: Mapping[str, object]) -> bytes:
    """Return a server-sent event."""
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


def known_fields(form: type[msgspec.Struct], *others: Iterable[str]) -> frozenset[str]:
    """Return the names of all fields that a request may have."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(form)).union(*others)


def check_stream(body: Body) -> None:
    """Raise ``UsageError`` for options of a stream that is none."""
    if body.get("stream_options") is not None and not body.get("stream"):
        raise UsageError("stream_options was given without stream.", hint='Add "stream": true, or leave it out.')


def wants_usage(asked: Sampled) -> bool:
    """Return whether a stream ends with its usage."""
    return asked.stream_options is not None and asked.stream_options.include_usage


def count_of(n: int) -> int:
    """Return how many answers are wanted. Raises ``UsageError`` for none, or too many."""
    if not 1 <= n <= _MOST_ANSWERS:
        raise UsageError(f"n is {n}.", hint=f"It may be 1 to {_MOST_ANSWERS}.")
    return n


def tool_options(tools: Sequence[Any] | None, choice: object, parallel: bool | None) -> dict[str, object]:
    """Return the options of the SDK that say which of the tools are called, none without any. Raises ``UsageError``."""
    if not tools:
        if choice in (None, "auto", "none"):
            return {}
        raise UsageError("tool_choice was given without tools.", hint="Send the tools, or leave it out.")
    options: dict[str, object] = {} if parallel is None else {"parallel_tool_calls": parallel}
    if choice is None or choice in ("auto", "none", "required"):
        return options if choice is None else {**options, "tool_choice": choice}
    if isinstance(choice, dict) and choice.get("type") == "function":
        return {**options, "tool_choice": choice}
    raise UsageError(
        "tool_choice cannot be honoured here.", hint="It is auto, none, required, or the function that is to be called."
    )


def finish(result: Result) -> str:
    """Return why an answer ended, in OpenAI's words."""
    if result.tool_calls:
        return "tool_calls"
    return "length" if result.finish_reason == "length" else "stop"


def _token(text: str, value: float) -> dict[str, Any]:
    # A token that is a part of a character has no text of its own; its bytes are not known here.
    spelled = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": value, "bytes": spelled}
