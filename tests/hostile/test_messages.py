"""Messages and answers that nobody would write: each is answered, or refused in words, in a bounded time."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from limited import in_child

from edgepack import fake
from edgepack.errors import EdgepackError, ToolCallError
from edgepack.text.tools import Tools

pytestmark = pytest.mark.hostile

TEMPLATE = """{%- if tools %}{{ tools | tojson }}<tool_call>{"name": x, "arguments": y}</tool_call>{% endif %}
{%- for m in messages %}<|start|>{{ m.role }}
{{ m.content }}
{%- for c in m.tool_calls or [] %}<tool_call>{{ (c.function or c).name }}
{{- (c.function or c).arguments | tojson }}</tool_call>{% endfor %}<|end|>
{% endfor %}{% if add_generation_prompt %}<|start|>assistant
<think>
{% endif %}"""
ARGUMENTS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "n": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "yes": {"type": "boolean"},
        "all": {"type": "array", "items": {"$ref": "#/properties/n"}},
        "of": {"$ref": "#"},
    },
    "additionalProperties": False,
}
TOOL = {"name": "f", "description": "", "parameters": ARGUMENTS}
TEXTS = [
    "",
    " ",
    "hi",
    "a\ud83d",
    "\udc00",
    "\ufdd0\ufdd1",
    "</think>",
    "<think>",
    "<tool_call>",
    "<|end|>",
    "x" * 3000,
    "\0",
]
TEXTS += [
    '{"name": "f", "arguments": {}}',
    '{"n": "3"}',
    '{"n": ',
    "[1]",
    "null",
    '{"a": "\\ud83d"}',
    "[" * 5000,
    "9" * 5000,
]
ROLES = ["user", "assistant", "system", "tool", "developer", "", "x", None, 3]
KEYS = [
    "role",
    "content",
    "tool_calls",
    "function",
    "name",
    "arguments",
    "id",
    "type",
    "text",
    "tool_call_id",
    "n",
    "of",
]


def anything(rng: Random, depth: int = 0) -> Any:
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind < 3:
        return rng.choice(TEXTS)
    if kind < 6:
        return rng.choice([None, True, 0, -1, 3.0, 1e300, float("nan"), float("inf"), 10**30, b"x", {1}, object])
    if kind < 8:
        return {rng.choice([*KEYS, 3, "\ud83d"]): anything(rng, depth + 1) for _ in range(rng.randrange(4))}
    return [anything(rng, depth + 1) for _ in range(rng.randrange(4))]


def message(rng: Random) -> Any:
    """Return a message that is nearly one: one or two of its fields are anything."""
    function = {"name": "f", "arguments": rng.choice(['{"n": 1}', {"n": 1}, None, ""])}
    made: dict[Any, Any] = {"role": rng.choice(ROLES[:4]), "content": rng.choice(["hi", None, "", "<think>no"])}
    made |= rng.choice(
        [{}, {"tool_calls": [{"id": "a", "type": "function", "function": function}]}, {"tool_call_id": "a"}]
    )
    for _ in range(rng.randrange(3)):
        place = rng.choice([made, function])
        place[rng.choice([*KEYS, "refusal"])] = rng.choice([rng.choice(ROLES), anything(rng)])
    return anything(rng) if rng.random() < 0.05 else made


def test_any_messages_are_answered_or_refused(portion: Callable[[int], int]) -> None:
    def work() -> str:
        answered = 0
        with fake.model(says="ok</think>No.", template=TEMPLATE) as model:
            for case in range(portion(2000)):
                rng = Random(case)
                options: dict[str, Any] = {"continue_final": rng.choice([None, True]), "max_tokens": 20}
                options |= {"tools": [TOOL]} if rng.random() < 0.5 else {}
                options |= {"on_overflow": rng.choice([None, "rolling", "truncate_middle"])}
                messages = [message(rng) for _ in range(rng.randrange(1, 5))]
                try:
                    answered += bool(model.chat(messages, **options).text)
                except EdgepackError as error:
                    str(error).encode()
                except BaseException as error:
                    raise RuntimeError(f"{case}: {error!r}") from error
        return "both" if 0 < answered < portion(2000) else f"{answered} answered"

    ended = in_child(work, seconds=240, gigabytes=4)
    assert (ended.kind, ended.text) == ("answer", "both")


def test_any_answer_is_read_or_refused(portion: Callable[[int], int]) -> None:
    """What is read is valid as it stands: it survives being told again, and nothing was thought only."""
    pieces = [*TEXTS, "ok", "\n", "```json\n", "```", "[", "]", "{", "}", ",", ";", "</tool_call>", '"arguments": ']
    pieces += [
        '{"name": "f", "arguments": ',
        '{"n": "3", "yes": "true"}',
        '{"n": 3.0, "all": ["1", 2.0, null]}',
        '{"of": {"n": ',
    ]

    def work() -> str:
        tools, read = Tools.of([TOOL]), 0
        for case in range(portion(20_000)):
            rng = Random(case)
            text, begun = "".join(rng.choices(pieces, k=rng.randrange(1, 8))), rng.choice(["", "<think>"])
            if case % 3 == 0:
                call = f'<tool_call>{{"name": "f", "arguments": {json.dumps(anything(rng), default=str)}}}</tool_call>'
                text = f"ok</think>{call}" if begun else call
            try:
                content, calls = tools.parse(text, TEMPLATE, begun)
            except ToolCallError as error:
                str(error).encode()
                if error.text == text:
                    continue
                raise
            except BaseException as error:
                raise RuntimeError(f"{case}: {error!r}") from error
            read += len(calls)
            assert calls or content == text, case
            assert not begun or not calls or "</think>" in text, case
            for call in calls:
                json.dumps(call.to_dict(), allow_nan=False, ensure_ascii=False).encode()
                again, (same,) = tools.parse(f"<tool_call>{json.dumps(call.to_dict())}</tool_call>", TEMPLATE)
                assert (again, same.arguments, same.coerced) == ("", call.arguments, {}), case
        return "both" if 0 < read < portion(20_000) else f"{read} read"

    ended = in_child(work, seconds=240, gigabytes=4)
    assert (ended.kind, ended.text) == ("answer", "both")
