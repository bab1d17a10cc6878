"""What `llm` asks, as ``edgepack`` takes it: messages, tools, options."""

from __future__ import annotations

from typing import Any

import llm
from llm.parts import Message, ReasoningPart, TextPart, ToolCallPart, ToolResultPart

from edgepack.errors import UsageError


def messages(prompt: llm.Prompt) -> list[dict[str, object]]:
    """Return the whole conversation."""
    return [said for message in prompt.messages for said in _message(message)]


def options(prompt: llm.Prompt) -> dict[str, Any]:
    """Return the options of ``chat``: what is left open is the bundle's, or the server's."""
    asked: dict[str, Any] = prompt.options.model_dump(exclude_none=True, exclude={"where"})
    if prompt.schema:
        asked["json_schema"] = prompt.schema
    if prompt.tools:
        asked["tools"] = [_tool(each) for each in prompt.tools]
    return asked


def _tool(tool: object) -> dict[str, object]:
    if not isinstance(tool, llm.Tool):
        raise UsageError(f"A tool is of type {type(tool).__name__}.", hint="Pass functions: a model runs none itself.")
    return {"name": tool.name, "description": tool.description or "", "parameters": tool.input_schema}


def _message(message: Message) -> list[dict[str, object]]:
    if message.role == "tool":
        return [
            {"role": "tool", "name": part.name, "content": part.output, "tool_call_id": part.tool_call_id}
            for part in message.parts
            if isinstance(part, ToolResultPart)
        ]
    said: dict[str, object] = {"role": message.role, "content": _joined(message, TextPart)}
    if thought := _joined(message, ReasoningPart):
        said["reasoning_content"] = thought
    calls = [_call(part) for part in message.parts if isinstance(part, ToolCallPart)]
    return [{**said, "tool_calls": calls} if calls else said]


def _call(part: ToolCallPart) -> dict[str, object]:
    function = {"name": part.name, "arguments": part.arguments}
    return {"id": part.tool_call_id, "type": "function", "function": function}


def _joined(message: Message, kind: type[TextPart] | type[ReasoningPart]) -> str:
    return "".join(part.text for part in message.parts if isinstance(part, kind))
