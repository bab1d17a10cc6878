"""POST /v1/responses: OpenAI's newer interface without its memory: no answer is kept, and a client sends them all.

So ``store`` may be left out or false, and what refers to something that was kept, such as ``previous_response_id``, is
refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import msgspec

from edgepack import EdgepackError, Result
from edgepack.decoding.options import ChatOptions
from edgepack.errors import UsageError
from edgepack_serve.asked import Asked, Body, Head, Writer
from edgepack_serve.doors import fields, openai_forms
from edgepack_serve.doors.openai_events import ResponseWriter
from edgepack_serve.doors.openai_items import items_of, messages_of

NEUTRAL: fields.Neutral = {
    "background": (None, False),
    "context_management": (None, []),
    "conversation": (None,),
    "max_tool_calls": (None,),
    "moderation": (None,),
    "previous_response_id": (None,),
    "prompt": (None,),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
}
PASSED = openai_forms.PASSED | {"prompt_cache_options", "stream_options"}
_LOGPROBS = "message.output_text.logprobs"
_Fields = dict[str, Any]


class FunctionTool(msgspec.Struct, forbid_unknown_fields=True):
    """A function of the client's own. ``strict`` asks for nothing more: a call is always valid by its schema."""

    type: Literal["function"]
    name: str
    parameters: _Fields | None = None
    description: str | None = None
    strict: bool | None = None


class TextFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What binds the answer."""

    type: Literal["text", "json_object", "json_schema"]
    schema: _Fields | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class Text(msgspec.Struct, forbid_unknown_fields=True):
    """What the answer is to be."""

    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class Reasoning(msgspec.Struct, forbid_unknown_fields=True):
    """Whether the model is to think: "none" is without, "medium" what is meant without a word."""

    effort: Literal["none", "medium"] | None = None
    summary: None = None


class ResponsesRequest(msgspec.Struct, kw_only=True):
    """The fields of a request that are honoured. ``seed`` to ``repetition_penalty`` are edgepack's own."""

    model: str
    input: str | list[_Fields]
    instructions: str | None = None
    stream: bool = False
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    text: Text | None = None
    tools: list[FunctionTool] | None = None
    tool_choice: str | _Fields | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Reasoning | None = None
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = None
    truncation: Literal["auto", "disabled"] | None = None
    seed: int | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None


_KNOWN = openai_forms.known_fields(ResponsesRequest, NEUTRAL, PASSED)
_SAME = ("temperature", "top_p", "seed", "top_k", "min_p", "repetition_penalty")


class OpenAIResponses:
    """The dialect of /v1/responses."""

    request, neutral, passed = ResponsesRequest, NEUTRAL, PASSED

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, ResponsesRequest, "A response", neutral=NEUTRAL, passed=PASSED)
        return Asked(
            model=asked.model,
            messages=messages_of(asked.input, asked.instructions),
            options=_options(asked),
            stream=asked.stream,
            kept=_echo(asked, body),
        )

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return a response."""
        return response(asked, head, results[0])

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes the events of a response."""
        return ResponseWriter(lambda result: response(asked, head, result), head)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in OpenAI's form."""
        return openai_forms.fault(error, status, _KNOWN)


def response(asked: Asked, head: Head, result: Result | None) -> _Fields:
    """Return a response: one that has just begun where there is no result."""
    made: _Fields = {
        "id": f"resp_{head.id}",
        "object": "response",
        "created_at": head.created,
        "status": "in_progress",
        "model": asked.model,
        "output": [],
        "error": None,
        "incomplete_details": None,
        "usage": None,
        **asked.kept,
    }
    if result is None:
        return made
    cut = result.finish_reason == "length"
    return made | {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "output": items_of(result, head),
        "usage": _usage(result),
        "timings": result.timings.to_dict(),
    }


def _options(asked: ResponsesRequest) -> ChatOptions:
    options: Any = {name: value for name in _SAME if (value := getattr(asked, name)) is not None}
    if asked.max_output_tokens is not None:
        options["max_tokens"] = asked.max_output_tokens
    if asked.truncation == "auto":
        options["on_overflow"] = "truncate_middle"
    if asked.top_logprobs is not None or asked.include:
        options["logprobs"], options["n_best"] = True, asked.top_logprobs or 0
    form = None if asked.text is None else asked.text.format
    if form is not None and form.type != "text":
        if form.type == "json_schema" and form.schema is None:
            raise UsageError("text.format.schema is missing.", hint="It is the schema that binds the answer.")
        options["json_schema"] = form.schema if form.type == "json_schema" else True
    if asked.reasoning is not None and asked.reasoning.effort == "none":
        options["thinking"] = False
    if asked.tools:
        options["tools"] = [
            {"name": tool.name, "description": tool.description or "", "parameters": tool.parameters or _NOTHING}
            for tool in asked.tools
        ]
    options |= openai_forms.tool_options(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
    found: ChatOptions = options
    return found


_NOTHING: _Fields = {"type": "object", "properties": {}}


def _echo(asked: ResponsesRequest, body: Body) -> _Fields:
    """Return the fields of a request that its response says again."""
    form = None if asked.text is None else asked.text.format
    return {
        "instructions": asked.instructions,
        "max_output_tokens": asked.max_output_tokens,
        "metadata": body.get("metadata") or {},
        "parallel_tool_calls": asked.parallel_tool_calls is not False,
        "previous_response_id": None,
        "reasoning": {"effort": None if asked.reasoning is None else asked.reasoning.effort, "summary": None},
        "store": False,
        "temperature": asked.temperature,
        "text": {"format": {"type": "text"} if form is None else _given(form)},
        "tool_choice": asked.tool_choice or "auto",
        "tools": [_given(tool) for tool in asked.tools or ()],
        "top_p": asked.top_p,
        "truncation": asked.truncation or "disabled",
    }


def _given(value: msgspec.Struct) -> _Fields:
    told: _Fields = msgspec.to_builtins(value)
    return {name: each for name, each in told.items() if each is not None or name in ("parameters", "strict")}


def _usage(result: Result) -> _Fields:
    used = result.usage
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": used.reasoning_tokens},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }
