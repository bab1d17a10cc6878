"""Ollama's own interface, which takes more of edgepack's options than its OpenAI one: /api/chat and /api/generate."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from edgepack.bundle.thinking import CLIENTS
from edgepack.decoding.logprobs import Alternative, TokenLogprob
from edgepack.decoding.results import Usage
from edgepack_connect.asking import put
from edgepack_connect.capabilities import Kind
from edgepack_connect.events import JsonLines, Splitter
from edgepack_connect.faults import decoded, event_fault
from edgepack_connect.forms import DEFAULT_TOKENS
from edgepack_connect.told import CallPiece, Told

_NANOSECONDS = 1e9


class _Function(msgspec.Struct):
    name: str = ""
    arguments: dict[str, Any] | None = None


class _Call(msgspec.Struct):
    id: str | None = None
    function: _Function | None = None


class _Message(msgspec.Struct):
    content: str | None = None
    thinking: str | None = None
    tool_calls: list[_Call] | None = None


class _Token(msgspec.Struct):
    token: str
    logprob: float
    top_logprobs: list[_Token] | None = None


class _Event(msgspec.Struct):
    message: _Message | None = None
    response: str | None = None
    thinking: str | None = None
    logprobs: list[_Token] | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: int | None = None
    prompt_eval_duration: int | None = None
    eval_count: int | None = None
    eval_duration: int | None = None
    error: Any = None


class OllamaForm:
    """The dialect. A prompt that is too long is an error, where the server would cut its beginning in silence."""

    paths: Mapping[Kind, str] = {"chat": "/api/chat", "text": "/api/generate"}

    def body(
        self, kind: Kind, model: str, asked: str | Sequence[Mapping[str, Any]], fields: Mapping[str, object]
    ) -> dict[str, object]:
        """Return the JSON of a request."""
        body: dict[str, object] = {"model": model, "stream": True, "truncate": False, "shift": False}
        if isinstance(asked, str):
            body |= {"prompt": asked, "raw": True}
            put(body, "options.num_predict", DEFAULT_TOKENS)
        else:
            body["messages"] = [_message(each) for each in asked]
        for name, value in fields.items():
            if name == "options" and isinstance(value, dict):
                for inner, each in value.items():
                    put(body, f"options.{inner}", each)
            else:
                body[name] = value
        return body

    def splitter(self) -> Splitter:
        """Return what takes a stream apart."""
        return JsonLines()

    def read(self, event: bytes) -> Told | None:
        """Return what a line says."""
        found = decoded(event, _Event)
        if found.error is not None:
            raise event_fault(found.error)
        message = found.message or _Message(content=found.response, thinking=found.thinking)
        return Told(
            text=message.content or "",
            reasoning=message.thinking or "",
            logprobs=None if found.logprobs is None else tuple(_token(each) for each in found.logprobs),
            calls=_calls(message.tool_calls),
            end=(found.done_reason or "stop") if found.done else None,
            usage=_usage(found),
            prefill_tps=_rate(found.prompt_eval_count, found.prompt_eval_duration),
            decode_tps=_rate(found.eval_count, found.eval_duration),
        )


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message in this dialect's words: the arguments of calls are objects, and thoughts have another name."""
    written = {name: value for name, value in message.items() if name not in (CLIENTS, "tool_calls", "name")}
    if message.get(CLIENTS):
        written["thinking"] = message[CLIENTS]
    if message.get("name") is not None and message["role"] == "tool":
        written["tool_name"] = message["name"]
    calls = message.get("tool_calls")
    if isinstance(calls, list):
        written["tool_calls"] = [_written(each) for each in calls]
        written["content"] = written.get("content") or ""
    return written


def _written(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else {}
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:
            arguments = {}
    return {"function": {"name": function.get("name"), "arguments": arguments}}


def _calls(found: list[_Call] | None) -> list[CallPiece]:
    whole = [(each.id, each.function) for each in found or () if each.function is not None]
    return [CallPiece(None, id, each.name, json.dumps(each.arguments or {})) for id, each in whole]


def _token(found: _Token) -> TokenLogprob:
    best = tuple(Alternative(None, each.token, each.logprob) for each in found.top_logprobs or ())
    return TokenLogprob(None, found.token, found.logprob, best)


def _usage(found: _Event) -> Usage | None:
    if not found.done or found.eval_count is None:
        return None
    return Usage(found.prompt_eval_count or 0, found.eval_count)


def _rate(count: int | None, nanoseconds: int | None) -> float | None:
    return count * _NANOSECONDS / nanoseconds if count and nanoseconds else None
