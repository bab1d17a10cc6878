"""POST /v1/chat/completions: OpenAI's chat, as its clients and llama-server, vLLM and DeepSeek extend it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec

from edgepack import Chunk, EdgepackError, Result, ToolCall
from edgepack.errors import UsageError
from edgepack_serve.asked import Asked, Body, Head, Writer
from edgepack_serve.doors import fields, openai_forms
from edgepack_serve.doors.openai_forms import event
from edgepack_serve.refusals import status_of

NEUTRAL: fields.Neutral = {
    "audio": (None,),
    "function_call": (None, "auto", "none"),
    "functions": (None,),
    "frequency_penalty": (None, 0),
    "logit_bias": (None, {}),
    "modalities": (None, ["text"]),
    "moderation": (None,),
    "prediction": (None,),
    "presence_penalty": (None, 0),
    "service_tier": (None, "auto", "default"),
    "store": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": (None,),
}
PASSED = openai_forms.PASSED
_MOST_LOGPROBS = 20
_MESSAGES = {
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role"],
        "properties": {"role": {"type": "string"}, "content": {"type": ["string", "array", "null"]}},
    },
}
"""The form of messages; the SDK says what is wrong with one."""


class JsonSchema(msgspec.Struct):
    """A schema with a name, as ``response_format`` has it."""

    name: str
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, forbid_unknown_fields=True):
    """What binds the answer."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class ChatRequest(openai_forms.Sampled, kw_only=True):
    """The fields of a request that are honoured."""

    messages: Annotated[list[dict[str, Any]], msgspec.Meta(extra_json_schema=_MESSAGES)]
    max_tokens: openai_forms.Count | None = None
    max_completion_tokens: openai_forms.Count | None = None
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Any = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: Literal["none", "medium"] | None = None
    thinking: bool | None = None
    thinking_tokens: int | None = None
    continue_final: bool | None = None
    date: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None


_KNOWN = openai_forms.known_fields(ChatRequest, NEUTRAL, PASSED)


class OpenAIChat:
    """The dialect of /v1/chat/completions."""

    request, neutral, passed = ChatRequest, NEUTRAL, PASSED

    def read(self, body: Body) -> Asked:
        """Return what a request asks for. Raises ``UsageError``."""
        asked = fields.read(body, ChatRequest, "A chat completion", neutral=NEUTRAL, passed=PASSED)
        openai_forms.check_stream(body)
        options = openai_forms.options_of(asked)
        for name in ("thinking", "thinking_tokens", "continue_final", "date", "logprobs"):
            if (value := getattr(asked, name)) is not None:
                options[name] = value
        if asked.reasoning_effort == "none":
            options.setdefault("thinking", False)
        if asked.top_logprobs is not None:
            if not asked.logprobs:
                raise UsageError("top_logprobs was given without logprobs.", hint='Add "logprobs": true.')
            if not 0 <= asked.top_logprobs <= _MOST_LOGPROBS:
                raise UsageError(f"top_logprobs is {asked.top_logprobs}.", hint=f"It may be 0 to {_MOST_LOGPROBS}.")
            options["n_best"] = asked.top_logprobs
        if asked.max_tokens is not None and asked.max_completion_tokens is not None:
            raise UsageError("max_tokens was given beside max_completion_tokens.", hint="Leave one of them out.")
        most = asked.max_tokens if asked.max_completion_tokens is None else asked.max_completion_tokens
        if most is not None:
            options["max_tokens"] = most
        if asked.chat_template_kwargs is not None:
            options["variables"] = asked.chat_template_kwargs
        bound = _bound(asked.response_format)
        if bound is not None:
            options["json_schema"] = bound
        if asked.tools:
            options["tools"] = asked.tools
        told = openai_forms.tool_options(asked.tools, asked.tool_choice, asked.parallel_tool_calls)
        options |= told  # type: ignore[typeddict-item]
        return Asked(
            model=asked.model,
            messages=asked.messages,
            options=options,
            stream=asked.stream,
            n=openai_forms.count_of(asked.n),
            kept={"usage": openai_forms.wants_usage(asked)},
        )

    def whole(self, asked: Asked, results: Sequence[Result], head: Head) -> Mapping[str, object]:
        """Return a chat completion."""
        choices = [_choice(index, result, head) for index, result in enumerate(results)]
        return {
            **_named(asked, head, "chat.completion"),
            "choices": choices,
            "usage": openai_forms.usage(results),
            "timings": results[0].timings.to_dict(),
        }

    def writer(self, asked: Asked, head: Head) -> Writer:
        """Return what writes chunks of a chat completion."""
        return _ChatWriter(asked, head)

    def fault(self, error: EdgepackError, status: int) -> Mapping[str, object]:
        """Return an error in OpenAI's form."""
        return openai_forms.fault(error, status, _KNOWN)


class _ChatWriter:
    content_type = "text/event-stream"

    def __init__(self, asked: Asked, head: Head) -> None:
        self._named = _named(asked, head, "chat.completion.chunk")
        self._usage = asked.kept["usage"] is True
        self._n, self._head = asked.n, head

    def begin(self) -> Iterable[bytes]:
        for index in range(self._n):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, choice: int, chunk: Chunk) -> Iterable[bytes]:
        delta: dict[str, Any] = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.text or not delta:
            delta["content"] = chunk.text
        probabilities = _logprobs(chunk.logprobs)
        if chunk.text or chunk.reasoning or probabilities is not None:
            yield self._chunk(choice, delta, probabilities)

    def end(self, choice: int, result: Result) -> Iterable[bytes]:
        if result.tool_calls:
            calls = [
                {"index": index, **each} for index, each in enumerate(_calls(result.tool_calls, self._head, choice))
            ]
            yield self._chunk(choice, {"tool_calls": calls})
        yield self._chunk(choice, {}, finish=openai_forms.finish(result))

    def close(self, results: Sequence[Result]) -> Iterable[bytes]:
        if self._usage:
            timings = results[0].timings.to_dict()
            yield event({**self._named, "choices": [], "usage": openai_forms.usage(results), "timings": timings})
        yield openai_forms.DONE

    def fault(self, error: EdgepackError) -> Iterable[bytes]:
        yield event(openai_forms.fault(error, status_of(error), _KNOWN))

    def alive(self) -> Iterable[bytes]:
        yield openai_forms.ALIVE

    def _chunk(
        self, index: int, delta: dict[str, Any], logprobs: dict[str, Any] | None = None, finish: str | None = None
    ) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}
        more = {"usage": None} if self._usage else {}
        return event({**self._named, "choices": [choice], **more})


def _named(asked: Asked, head: Head, kind: str) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{head.id}",
        "object": kind,
        "created": head.created,
        "model": asked.model,
        "system_fingerprint": head.fingerprint,
    }


def _choice(index: int, result: Result, head: Head) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": result.text, "refusal": None}
    if result.reasoning is not None:
        message["reasoning_content"] = result.reasoning
    if result.tool_calls:
        message["content"] = result.text or None
        message["tool_calls"] = _calls(result.tool_calls, head, index)
    return {
        "index": index,
        "message": message,
        "logprobs": _logprobs(result.logprobs),
        "finish_reason": openai_forms.finish(result),
    }


def _calls(calls: Sequence[ToolCall], head: Head, choice: int) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id or f"call_{head.id[:16]}{choice}{index}",
            "type": "function",
            "function": {"name": call.name, "arguments": json.dumps(call.arguments, ensure_ascii=False)},
        }
        for index, call in enumerate(calls)
    ]


def _logprobs(tokens: Sequence[Any] | None) -> dict[str, Any] | None:
    if tokens is None:
        return None
    return {"content": [openai_forms.logprob(each) for each in tokens], "refusal": None}


def _bound(form: ResponseFormat | None) -> dict[str, Any] | bool | None:
    """Return the schema that binds an answer, True for any object."""
    if form is None or form.type == "text":
        return None
    if form.type == "json_object":
        return True
    if form.json_schema is None:
        raise UsageError(
            "response_format.json_schema is missing.", hint='It is {"name": "...", "schema": {...}, "strict": true}.'
        )
    return True if form.json_schema.schema is None else form.json_schema.schema
