"""OpenAI's interface, as its server and those after it speak it: /v1/chat/completions and /v1/completions."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import msgspec

from edgepack.decoding.logprobs import Alternative, TokenLogprob
from edgepack.decoding.results import Usage
from edgepack_connect.capabilities import Kind
from edgepack_connect.events import ServerSentEvents, Splitter
from edgepack_connect.faults import decoded, event_fault
from edgepack_connect.forms import DEFAULT_TOKENS
from edgepack_connect.told import CallPiece, Told


class _Function(msgspec.Struct):
    name: str | None = None
    arguments: str | dict[str, Any] | None = None


class _Call(msgspec.Struct):
    index: int | None = None
    id: str | None = None
    function: _Function | None = None


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[_Call] | _Call | None = None


class _Token(msgspec.Struct):
    token: str
    logprob: float
    id: int | None = None
    top_logprobs: list[_Token] | None = None


class _Logprobs(msgspec.Struct):
    content: list[_Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float] | None] | None = None


class _Choice(msgspec.Struct):
    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    logprobs: _Logprobs | None = None
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    matched_stop: str | int | None = None
    token_ids: list[int] | None = None


class _Cached(msgspec.Struct):
    cached_tokens: int | None = None


class _Thought(msgspec.Struct):
    reasoning_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = None
    prompt_tokens_details: _Cached | None = None
    completion_tokens_details: _Thought | None = None


class _Timings(msgspec.Struct):
    """edgepack's own and llama-server's."""

    prefill_tps: float | None = None
    decode_tps: float | None = None
    prompt_per_second: float | None = None
    predicted_per_second: float | None = None
    cache_n: int = 0
    prompt_n: int | None = None
    predicted_n: int | None = None
    draft_n: int | None = None
    draft_n_accepted: int | None = None


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    timings: _Timings | None = None
    error: Any = None


class OpenAIForm:
    """The dialect. ``more`` are fields that each request has beside those of the options."""

    paths: Mapping[Kind, str] = {"chat": "/v1/chat/completions", "text": "/v1/completions"}

    def __init__(self, more: Mapping[str, object] | None = None) -> None:
        self._more = more or {}

    def body(
        self, kind: Kind, model: str, asked: str | Sequence[Mapping[str, Any]], fields: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the JSON of a request."""
        what: dict[str, object]
        if isinstance(asked, str):
            what = {"prompt": asked, "max_tokens": DEFAULT_TOKENS}
        else:
            what = {"messages": [_message(each) for each in asked]}
        streams = {"stream": True, "stream_options": {"include_usage": True}}
        return {"model": model, **what, **streams, **self._more, **fields}

    def splitter(self) -> Splitter:
        """Return what takes a stream apart."""
        return ServerSentEvents()

    def read(self, event: bytes) -> Told | None:
        """Return what an event says, None for the last."""
        if event.strip() == b"[DONE]":
            return None
        found = decoded(event, _Event)
        if found.error is not None:
            raise event_fault(found.error)
        choice = next((each for each in found.choices if each.index == 0), _Choice())
        delta = choice.delta or _Delta(content=choice.text)
        timings = found.timings or _Timings()
        return Told(
            text=delta.content or "",
            reasoning=delta.reasoning_content or delta.reasoning or "",
            token_ids=tuple(choice.token_ids or ()),
            logprobs=_with_ids(_logprobs(choice.logprobs), choice.token_ids or ()),
            calls=_calls(delta.tool_calls),
            end=choice.finish_reason,
            stop=choice.matched_stop if choice.stop_reason is None else choice.stop_reason,
            usage=_usage(found.usage, timings),
            prefill_tps=timings.prefill_tps or timings.prompt_per_second,
            decode_tps=timings.decode_tps or timings.predicted_per_second,
        )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with the arguments of calls as the JSON texts that clients of this interface send."""
    calls = message.get("tool_calls")
    if not isinstance(calls, list):
        return dict(message)
    written = []
    for index, call in enumerate(calls):
        function = call.get("function", call) if isinstance(call, dict) else {}
        arguments = function.get("arguments", {})
        text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
        id = call.get("id") or f"call_{index}" if isinstance(call, dict) else f"call_{index}"
        written.append({"id": id, "type": "function", "function": {"name": function.get("name"), "arguments": text}})
    return {**message, "tool_calls": written}


def _usage(found: _Usage | None, timings: _Timings) -> Usage | None:
    drafted, accepted = timings.draft_n or 0, timings.draft_n_accepted or 0
    if found is None:
        if timings.prompt_n is None or timings.predicted_n is None:
            return None
        whole = timings.prompt_n + timings.cache_n
        return Usage(whole, timings.predicted_n, timings.cache_n, drafted_tokens=drafted, accepted_tokens=accepted)
    cached, thought = found.prompt_tokens_details, found.completion_tokens_details
    return Usage(
        found.prompt_tokens,
        found.completion_tokens or 0,
        cached_tokens=(cached and cached.cached_tokens) or 0,
        reasoning_tokens=(thought and thought.reasoning_tokens) or 0,
        drafted_tokens=drafted,
        accepted_tokens=accepted,
    )


def _calls(found: list[_Call] | _Call | None) -> list[CallPiece]:
    if found is None:
        return []
    pieces = []
    for place, call in enumerate(found if isinstance(found, list) else [found]):  # old versions of TGI send one alone
        function = call.function or _Function()
        given = function.arguments
        text = given or "" if given is None or isinstance(given, str) else json.dumps(given)
        pieces.append(CallPiece(place if call.index is None else call.index, call.id, function.name, text))
    return pieces


def _logprobs(found: _Logprobs | None) -> tuple[TokenLogprob, ...] | None:
    if found is None:
        return None
    if found.content is not None:
        return tuple(_token(each) for each in found.content)
    if found.tokens is None:
        return None
    count = len(found.tokens)
    values = (found.token_logprobs or [])[:count] + [None] * (count - len(found.token_logprobs or []))
    others = (found.top_logprobs or [])[:count] + [None] * (count - len(found.top_logprobs or []))
    told = zip(found.tokens, values, others, strict=True)
    return tuple(TokenLogprob(None, text, value, _ranked(best)) for text, value, best in told if value is not None)


def _with_ids(found: tuple[TokenLogprob, ...] | None, ids: Sequence[int]) -> tuple[TokenLogprob, ...] | None:
    """Return logprobs with the ids of their tokens, where a server tells those beside them."""
    if found is None or len(found) != len(ids):
        return found
    return tuple(replace(each, token_id=id) for each, id in zip(found, ids, strict=True))


def _token(found: _Token) -> TokenLogprob:
    best = tuple(Alternative(each.id, each.token, each.logprob) for each in found.top_logprobs or ())
    return TokenLogprob(found.id, found.token, found.logprob, best)


def _ranked(found: Mapping[str, float] | None) -> tuple[Alternative, ...]:
    ranked = sorted((found or {}).items(), key=lambda each: -each[1])
    return tuple(Alternative(None, text, value) for text, value in ranked)
