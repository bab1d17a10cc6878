"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's interface, as its clients speak it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import msgspec

from edgepack import Chunk, EdgepackError, Model, Result
from edgepack.decoding.options import ChatOptions
from edgepack.errors import UsageError
from edgepack_serve.answering import options_of
from edgepack_serve.asked import Asked, Body, Head, Writer
from edgepack_serve.doors import fields
from edgepack_serve.doors.anthropic_messages import messages_of
from edgepack_serve.refusals import status_of

NEUTRAL: fields.Neutral = {
    "container": (None,),
    "context_management": (None,),
    "diagnostics": (None,),
    "inference_geo": (None,),
    "mcp_servers": (None, []),
    "service_tier": (None, "auto", "standard_only"),
    "speed": (None, "standard"),
}
# Where a prompt begins that is to be kept is found here without being told.
PASSED = frozenset({"metadata", "user_profile_id", "workspace_id", "cache_control"})

_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
    504: "timeout_error",
}
_Fields = dict[str, Any]


class AnthropicTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool of the client's own. ``strict`` asks for nothing more: a call is always valid by its schema."""

    name: str
    input_schema: _Fields
    description: str = ""
    type: Literal["custom"] | None = None
    strict: bool | None = None
    cache_control: _Fields | None = None
    eager_input_streaming: bool | None = None


class ToolChoice(msgspec.Struct, forbid_unknown_fields=True):
    """Which tool is to be called."""

    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool = False


class ThinkingConfig(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model is to think, and in how many tokens."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = None
    display: Literal["summarized"] | None = None


class JsonFormat(msgspec.Struct, forbid_unknown_fields=True):
    """A schema that binds the answer."""

    type: Literal["json_schema"]
    schema: _Fields


class OutputConfig(msgspec.Struct, forbid_unknown_fields=True):
    """What binds the answer. An effort cannot be chosen: "high" is what is meant without one."""

    format: JsonFormat | None = None
    effort: Literal["high"] | None = None


class CountRequest(msgspec.Struct, kw_only=True):
    """The fields that make a prompt."""

    model: str
    messages: list[_Fields]
    system: str | list[_Fields] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: ThinkingConfig | None = None
    output_config: OutputConfig | None = None


class MessagesRequest(CountRequest, kw_only=True):
    """The fields of a request that are honoured."""

    max_tokens: int
    stop_sequences: list[str] | None = None
    stream: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None


_KNOWN = frozenset(MessagesRequest.__struct_fields__).union(NEUTRAL, PASSED)


class AnthropicMessages:
    """The dialect of /v1/messages."""

    request, neutral, passed = MessagesRequest, NEUTRAL, PASSED

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, MessagesRequest, "A message", neutral=NEUTRAL, passed=PASSED)
        messages, options = _prompt(asked)
        options["max_tokens"] = asked.max_tokens
        if asked.stop_sequences:
            options["stop"] = asked.stop_sequences
        for name in ("temperature", "top_k", "top_p"):
            if (value := getattr(asked, name)) is not None:
                options[name] = value
        if asked.output_config is not None and asked.output_config.format is not None:
            options["json_schema"] = asked.output_config.format.schema
        return Asked(model=asked.model, messages=messages, options=options, stream=asked.stream)

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return a message."""
        (result,) = results
        return {
            **_message(asked, head),
            "content": [*_said(result), *_calls(result, head)],
            **_ended(result),
            "usage": _usage(result),
            "timings": result.timings.to_dict(),
        }

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes the events of a message."""
        return _MessageWriter(asked, head)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Anthropic's form."""
        return fault(error, status)


class AnthropicCount:
    """The question of /v1/messages/count_tokens."""

    request, neutral, passed = CountRequest, NEUTRAL, PASSED

    def read(self, body: Body) -> tuple[str, Asked]:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, CountRequest, "A count of tokens", neutral=NEUTRAL, passed=PASSED)
        messages, options = _prompt(asked)
        options.pop("tool_choice", None)  # binds the answer, and is no part of the prompt
        return asked.model, Asked(model=asked.model, messages=messages, options=options)

    async def answer(self, model: Model, asked: Asked) -> Mapping[str, object]:
        """Return how many tokens the prompt has."""
        options = options_of(model, asked)
        return {"input_tokens": await asyncio.to_thread(model.count_tokens, asked.messages or (), **options)}

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in Anthropic's form."""
        return fault(error, status)


class _MessageWriter:
    """A message as events: its blocks one after the other, a thought, a text, then each call as one."""

    content_type = "text/event-stream"

    def __init__(self, asked: Asked, head: Head) -> None:
        self._asked, self._head = asked, head
        self._kind: str | None = None  # of the block that is open
        self._index = -1

    def begin(self) -> Iterable[bytes]:
        # What the prompt had is known when it has been evaluated: the whole usage stands at the end.
        usage = {"input_tokens": 0, "output_tokens": 0}
        message = {**_message(self._asked, self._head), "content": [], "stop_reason": None, "stop_sequence": None}
        yield _event("message_start", {"message": {**message, "usage": usage}})

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        if chunk.reasoning:
            yield from self._opened("thinking", {"thinking": "", "signature": ""})
            yield self._delta({"type": "thinking_delta", "thinking": chunk.reasoning})
        if chunk.text:
            yield from self._opened("text", {"text": ""})
            yield self._delta({"type": "text_delta", "text": chunk.text})

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        yield from self._closed()
        for call in _calls(result, self._head):
            arguments = msgspec.json.encode(call["input"]).decode()
            yield from self._opened("tool_use", {"id": call["id"], "name": call["name"], "input": {}})
            yield self._delta({"type": "input_json_delta", "partial_json": arguments})
            yield from self._closed()

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        (result,) = results
        timings = result.timings.to_dict()
        yield _event("message_delta", {"delta": _ended(result), "usage": _usage(result), "timings": timings})
        yield _event("message_stop", {})

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        yield _event("error", fault(error, status_of(error)))

    def alive(self) -> Iterable[bytes]:
        yield _event("ping", {})

    def _opened(self, kind: str, block: _Fields) -> Iterable[bytes]:
        if self._kind == kind:
            return
        yield from self._closed()
        self._kind, self._index = kind, self._index + 1
        yield _event("content_block_start", {"index": self._index, "content_block": {"type": kind, **block}})

    def _delta(self, delta: _Fields) -> bytes:
        return _event("content_block_delta", {"index": self._index, "delta": delta})

    def _closed(self) -> Iterable[bytes]:
        if self._kind is not None:
            self._kind = None
            yield _event("content_block_stop", {"index": self._index})


def _prompt(asked: CountRequest) -> tuple[list[_Fields], ChatOptions]:
    """Return the messages as the SDK takes them, and the options that are part of their prompt."""
    options = ChatOptions()
    messages = messages_of(asked.messages, asked.system)
    if messages[-1]["role"] == "assistant":
        options["continue_final"] = True
    if asked.tools:
        options["tools"] = [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            for tool in asked.tools
        ]
    choice = asked.tool_choice
    if choice is not None and not asked.tools:
        if choice.type not in ("auto", "none"):
            raise UsageError("tool_choice was given without tools.", hint="Send the tools, or leave it out.")
    elif choice is not None:
        if choice.disable_parallel_tool_use:
            options["parallel_tool_calls"] = False
        if choice.type == "tool":
            if choice.name is None:
                raise UsageError("tool_choice.name is missing.", hint="Name the tool that is to be called.")
            options["tool_choice"] = {"name": choice.name}
        elif choice.type != "auto":
            options["tool_choice"] = "required" if choice.type == "any" else "none"
    thinking = asked.thinking
    if thinking is not None and thinking.type != "adaptive":
        options["thinking"] = thinking.type == "enabled"
        if thinking.type == "enabled":
            if thinking.budget_tokens is None:
                raise UsageError("thinking.budget_tokens is missing.", hint="It is a number of tokens.")
            options["thinking_tokens"] = thinking.budget_tokens
    return messages, options


def _message(asked: Asked, head: Head) -> _Fields:
    return {"id": f"msg_{head.id}", "type": "message", "role": "assistant", "model": asked.model}


def _said(result: Result) -> list[_Fields]:
    blocks: list[_Fields] = []
    if result.reasoning:
        blocks.append({"type": "thinking", "thinking": result.reasoning, "signature": ""})
    if result.text:
        blocks.append({"type": "text", "text": result.text})
    return blocks


def _calls(result: Result, head: Head) -> list[_Fields]:
    ids = [call.id or f"toolu_{head.id[:20]}{index}" for index, call in enumerate(result.tool_calls)]
    return [
        {"type": "tool_use", "id": id, "name": call.name, "input": call.arguments}
        for id, call in zip(ids, result.tool_calls, strict=True)
    ]


def _ended(result: Result) -> _Fields:
    text = result.stop if isinstance(result.stop, str) else None
    if result.tool_calls:
        return {"stop_reason": "tool_use", "stop_sequence": None}
    if text is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": text}
    return {"stop_reason": "max_tokens" if result.finish_reason == "length" else "end_turn", "stop_sequence": None}


def _usage(result: Result) -> _Fields:
    used = result.usage
    return {
        "input_tokens": used.prompt_tokens - used.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": used.cached_tokens,
        "output_tokens": used.completion_tokens,
    }


def fault(error: EdgepackError, status: int) -> _Fields:
    """Return the body of an error in Anthropic's form."""
    kind = _TYPES.get(status, "api_error" if status >= 500 else "invalid_request_error")
    return {"type": "error", "error": {"type": kind, "message": str(error)}}


def _event(kind: str, data: Mapping[str, object]) -> bytes:
    return f"event: {kind}\ndata: ".encode() + msgspec.json.encode({"type": kind, **data}) + b"\n\n"
