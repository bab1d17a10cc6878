"""What was said before, in Anthropic's blocks, as messages that the SDK takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from edgepack.bundle.thinking import CLIENTS
from edgepack.errors import UsageError

_Fields = dict[str, Any]
_BLOCKS = "The model reads text alone."


def messages_of(messages: Sequence[_Fields], system: str | Sequence[_Fields] | None) -> list[_Fields]:
    """Return the messages, the system's first. Raises ``UsageError`` that names the place of what cannot be read."""
    if not messages:
        raise UsageError("messages is empty.", hint='Send [{"role": "user", "content": "..."}].')
    made: list[_Fields] = []
    if system:
        made.append({"role": "system", "content": _text(system, "system")})
    for index, message in enumerate(messages):
        place, role = f"messages[{index}]", message.get("role")
        if role == "user":
            made += _asked(message.get("content"), f"{place}.content")
        elif role == "assistant":
            made.append(_answered(message.get("content"), f"{place}.content"))
        elif role == "system":
            made.append({"role": "system", "content": _text(message.get("content"), f"{place}.content")})
        else:
            raise UsageError(f"{place}.role is {role!r}.", hint="It is user, assistant or system.")
    return made


def _asked(content: object, place: str) -> list[_Fields]:
    """Return what a user says: first the results of calls, each a message of its own."""
    results: list[_Fields] = []
    texts: list[str] = []
    for index, block in enumerate(_blocks(content, place)):
        where = f"{place}[{index}]"
        if block.get("type") == "tool_result":
            results.append(_result(block, where))
        else:
            texts.append(_part(block, where))
    return [*results, {"role": "user", "content": "\n".join(texts)}] if texts else results


def _answered(content: object, place: str) -> _Fields:
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[_Fields] = []
    for index, block in enumerate(_blocks(content, place)):
        where = f"{place}[{index}]"
        match block.get("type"):
            case "tool_use":
                function = {"name": block.get("name"), "arguments": block.get("input", {})}
                calls.append({"id": block.get("id"), "type": "function", "function": function})
            case "thinking":
                thoughts.append(_string(block.get("thinking"), f"{where}.thinking"))
            case _:
                texts.append(_part(block, where))
    made: _Fields = {"role": "assistant", "content": "\n".join(texts)}
    if thoughts:
        made[CLIENTS] = "\n".join(thoughts)
    if calls:
        made["tool_calls"] = calls
    return made


def _result(block: _Fields, place: str) -> _Fields:
    """Return what a call gave; of one that failed the text says so."""
    content = block.get("content")
    text = _text(content, f"{place}.content") if content else ""
    if block.get("is_error") and not text.startswith("Error"):
        text = f"Error: {text}"
    return {
        "role": "tool",
        "tool_call_id": _string(block.get("tool_use_id"), f"{place}.tool_use_id"),
        "content": text,
    }


def _text(content: object, place: str) -> str:
    return "\n".join(_part(block, f"{place}[{index}]") for index, block in enumerate(_blocks(content, place)))


def _blocks(content: object, place: str) -> list[_Fields]:
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, list) and content and all(isinstance(block, dict) for block in content):
        return content
    raise UsageError(f"{place} is neither a text nor a list of blocks.", hint=_BLOCKS)


def _part(block: _Fields, place: str) -> str:
    if block.get("type") != "text":
        raise UsageError(f"{place} is a block of the type {block.get('type')!r}.", hint=_BLOCKS)
    return _string(block.get("text"), f"{place}.text")


def _string(value: object, place: str) -> str:
    if not isinstance(value, str):
        raise UsageError(f"{place} is no text.", hint="It must be a string.")
    return value
