"""What was said and what is answered, as the items of /v1/responses: messages, thoughts, calls and what calls gave."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from edgepack import Result
from edgepack.bundle.thinking import CLIENTS
from edgepack.errors import UsageError
from edgepack_serve.asked import Head
from edgepack_serve.doors import openai_forms

_Fields = dict[str, Any]
_TYPES = ("message", "reasoning", "function_call", "function_call_output")
_ROLES = ("user", "assistant", "system", "developer")
_TEXTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_PARTS = "The model reads text alone."


def messages_of(given: str | Sequence[_Fields], instructions: str | None) -> list[_Fields]:
    """Return the messages that an input is, the instructions first.

    A thought, a text and calls in a row are one message of the assistant's. Raises ``UsageError`` that names the place
    of what cannot be read.
    """
    made: list[_Fields] = [] if instructions is None else [{"role": "system", "content": instructions}]
    if isinstance(given, str):
        return [*made, {"role": "user", "content": given}]
    if not given:
        raise UsageError("input is empty.", hint="Send a text, or a list of items.")
    for index, item in enumerate(given):
        place = f"input[{index}]"
        match item.get("type", "message"):
            case "message":
                _say(made, item, place)
            case "reasoning":
                _think(made, item, place)
            case "function_call":
                _call(made, item, place)
            case "function_call_output":
                text = _text(item.get("output"), f"{place}.output")
                made.append({"role": "tool", "tool_call_id": _string(item, "call_id", place), "content": text})
            case other:
                raise UsageError(f"{place}.type is {other!r}.", hint=f"It is one of: {', '.join(_TYPES)}.")
    return made


def items_of(result: Result, head: Head) -> list[_Fields]:
    """Return the items of an answer."""
    status = "incomplete" if result.finish_reason == "length" else "completed"
    items: list[_Fields] = []
    if result.reasoning:
        items.append(reasoning(head, result.reasoning, status))
    if result.text or not result.tool_calls:
        logprobs = [] if result.logprobs is None else [openai_forms.logprob(each) for each in result.logprobs]
        items.append(message(head, [output_text(result.text, logprobs)], status))
    return items + calls(result, head)


def reasoning(head: Head, text: str | None, status: str) -> _Fields:
    """Return a thought, None for one that begins."""
    content = [] if text is None else [{"type": "reasoning_text", "text": text}]
    return {"id": f"rs_{head.id}", "type": "reasoning", "summary": [], "content": content, "status": status}


def message(head: Head, content: list[_Fields], status: str) -> _Fields:
    """Return a message of the assistant's."""
    return {"id": f"msg_{head.id}", "type": "message", "role": "assistant", "content": content, "status": status}


def output_text(text: str, logprobs: list[_Fields]) -> _Fields:
    """Return the text of a message."""
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def calls(result: Result, head: Head) -> list[_Fields]:
    """Return the calls of an answer."""
    return [
        {
            "id": f"fc_{head.id}{index}",
            "type": "function_call",
            "call_id": call.id or f"call_{head.id[:16]}{index}",
            "name": call.name,
            "arguments": json.dumps(call.arguments, ensure_ascii=False),
            "status": "completed",
        }
        for index, call in enumerate(result.tool_calls)
    ]


def _say(made: list[_Fields], item: _Fields, place: str) -> None:
    role = item.get("role")
    if role not in _ROLES:
        raise UsageError(f"{place}.role is {role!r}.", hint=f"It is one of: {', '.join(_ROLES)}.")
    text = _text(item.get("content"), f"{place}.content")
    if role == "assistant":
        _own(made, after=(CLIENTS,))["content"] = text
    else:
        made.append({"role": role, "content": text})


def _think(made: list[_Fields], item: _Fields, place: str) -> None:
    if item.get("encrypted_content") is not None:
        raise UsageError(f"{place}.encrypted_content cannot be read here.", hint="Leave the item out.")
    thought = item.get("content") or item.get("summary")
    if thought:
        made.append({"role": "assistant", "content": "", CLIENTS: _text(thought, f"{place}.content")})


def _call(made: list[_Fields], item: _Fields, place: str) -> None:
    function = {"name": _string(item, "name", place), "arguments": _string(item, "arguments", place)}
    call = {"id": _string(item, "call_id", place), "type": "function", "function": function}
    _own(made, after=(CLIENTS, "content", "tool_calls")).setdefault("tool_calls", []).append(call)


def _own(made: list[_Fields], after: Sequence[str]) -> _Fields:
    """Return the assistant's message that an item is part of: the last where it has no more than such parts."""
    last = made[-1] if made else {}
    parts = {name for name, value in last.items() if name != "role" and value}
    if last.get("role") != "assistant" or not parts <= set(after):
        made.append({"role": "assistant", "content": ""})
    return made[-1]


def _text(content: object, place: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise UsageError(f"{place} is neither a text nor a list of parts.", hint=_PARTS)
    return "\n".join(_part(part, f"{place}[{index}]") for index, part in enumerate(content))


def _part(part: object, place: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(part, dict) or kind not in (*_TEXTS, "refusal"):
        raise UsageError(f"{place} is a part of the type {kind!r}.", hint=_PARTS)
    return _string(part, "refusal" if kind == "refusal" else "text", place)


def _string(item: _Fields, name: str, place: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise UsageError(f"{place}.{name} is no text.", hint="It must be a string.")
    return value
