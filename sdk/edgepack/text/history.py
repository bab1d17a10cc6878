"""What was said before, as clients of OpenAI's interface send it back, in the form in which a chat template reads it.

Clients send the arguments of a call as JSON in a text, null beside calls and for each field that is not there, and the
role "developer". Templates differ in what they take, and most print another prompt for the rest without a word. How
one reads a call is found by rendering one.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from edgepack.bundle.thinking import CLIENTS, CONTENT, Thinking
from edgepack.errors import BundleError, UsageError
from edgepack.text.chat import ChatTemplate
from edgepack.text.messages import plain

INSTRUCTING = ("system", "developer")


class CallForm(NamedTuple):
    """How a template reads a call: its arguments as JSON in a text or as an object, beside no content or an empty one.

    As OpenAI's interface has it, the first of each is what clients send.
    """

    as_text: bool = False
    null_content: bool = False


_NAME, _PLACE = "find_edgepack_here", "Zürich"
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": "",
        # Nine letters and digits: Mistral's templates refuse others.
        "tool_calls": [
            {"id": "call00001", "type": "function", "function": {"name": _NAME, "arguments": {"a": _PLACE}}}
        ],
    },
    {"role": "tool", "name": _NAME, "tool_call_id": "call00001", "content": "rain"},
]


def form_of(template: ChatTemplate) -> CallForm:
    """Return the form in which a template prints a call whole: an object beside an empty text where that will do."""
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}] if "tools" in template.reads else None
    for as_text, null_content in product((False, True), repeat=2):
        form = CallForm(as_text, null_content)
        try:
            text = template.render(told(_PROBE, form, ()), tools=tools, date="2000-01-01")
        except (BundleError, UsageError):
            continue
        # Not as Python writes an object, nor as JSON inside of JSON.
        if _NAME in text and _PLACE in text and f"{{'a': '{_PLACE}'}}" not in text and '{\\"a\\"' not in text:
            return form
    return CallForm()


def told(
    messages: Sequence[Mapping[str, Any]], form: CallForm, roles: Collection[str], thinking: Thinking | None = None
) -> list[dict[str, Any]]:
    """Return checked messages in the form of a template that prints these roles, and thoughts as ``thinking`` says.

    Raises ``UsageError`` that names the place of a call that is none, and of a thought that is no text.
    """
    names: dict[str, str] = {}
    found = [
        _told(message, f"messages[{index}]", form, "developer" in roles, names)
        for index, message in enumerate(messages)
    ]
    if thinking is None:
        return found
    return [_thought(message, f"messages[{index}]", thinking) for index, message in enumerate(found)]


def _told(
    message: Mapping[str, Any], place: str, form: CallForm, has_developer: bool, names: dict[str, str]
) -> dict[str, Any]:
    made = {key: value for key, value in message.items() if value is not None}
    if made["role"] == "developer" and not has_developer:
        made["role"] = "system"
    answers = made.get("tool_call_id")
    if made["role"] == "tool" and "name" not in made and isinstance(answers, str) and answers in names:
        made["name"] = names[answers]
    calls = made.get("tool_calls")
    if calls == []:
        del made["tool_calls"]
        made.setdefault("content", "")
    elif calls is not None:
        if not isinstance(calls, list):
            raise UsageError(f"{place}.tool_calls is of type {type(calls).__name__}.", hint="It must be a list.")
        made["content"] = made.get("content") or (None if form.null_content else "")
        made["tool_calls"] = [
            _call(call, f"{place}.tool_calls[{index}]", form, names) for index, call in enumerate(calls)
        ]
    return made


def _thought(message: dict[str, Any], place: str, thinking: Thinking) -> dict[str, Any]:
    """Return a message with its thought where the template takes it."""
    if CLIENTS not in message:
        return message
    rest = {key: value for key, value in message.items() if key != CLIENTS}
    thought = message[CLIENTS]
    if not isinstance(thought, str):
        raise UsageError(f"{place}.{CLIENTS} is of type {type(thought).__name__}.", hint="It must be a string.")
    if not thought.strip() or thinking.field is None:
        return rest
    if thinking.field != CONTENT:
        return {**rest, thinking.field: thought}
    return {**rest, CONTENT: thinking.whole(thought, rest.get(CONTENT) or "")}


def _call(call: object, place: str, form: CallForm, names: dict[str, str]) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(call, dict) or not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UsageError(f"{place} has no function with a name.", hint=_CALL)
    if isinstance(call.get("id"), str):
        names[call["id"]] = function["name"]
    where = f"{place}.arguments" if function is call else f"{place}.function.arguments"
    arguments = _arguments(function.get("arguments"), where)
    read = {**function, "arguments": json.dumps(arguments, ensure_ascii=False) if form.as_text else arguments}
    return read if function is call else {**call, "function": read}


_CALL = 'It must be {"type": "function", "function": {"name": "...", "arguments": {...}}}.'


def _arguments(given: object, place: str) -> dict[str, Any]:
    found: object = given
    if isinstance(given, str):
        try:
            found = json.loads(given or "{}", strict=False)
        except (ValueError, RecursionError):
            found = None
    if given is None:
        found = {}
    if not isinstance(found, dict):
        raise UsageError(
            f"{place} is no JSON object.", hint="What a model wrote that is no call is the message's content."
        )
    arguments: dict[str, Any] = plain(found, place)
    return arguments
