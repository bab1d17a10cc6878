"""Text goes on as it comes; a call, or what may be one, comes whole at the end."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from serving import CHAT, HELLO, HERMES, TOOLS, serving

from edgepack import Model, fake

CALL = '<tool_call>\n{"name": "weather", "arguments": {"place": "Bern"}}\n</tool_call>'
BARE = '{"name": "weather", "arguments": {"place": "Bern"}}'
WEATHER = {"name": "weather", "arguments": '{"place": "Bern"}'}


def saying(text: str, **more: Any) -> dict[str, Callable[[], Model]]:
    return {"fake": lambda: fake.model(says=text, template=HERMES, **more)}


@pytest.mark.parametrize(
    ("says", "pieces", "calls"),
    [
        pytest.param("It rains.", "It rains.", 0, id="text"),
        pytest.param("3 < 4 <tool", "3 < 4 <tool", 0, id="the beginning of a mark"),
        pytest.param(CALL, "", 1, id="a call"),
        pytest.param(f"I look.\n{CALL}", "I look.", 1, id="text before a call"),
        pytest.param(f"{CALL}\n{CALL}", "", 2, id="two calls"),
        pytest.param(BARE, "", 1, id="a call without its mark"),
        pytest.param(f"```json\n{BARE}\n```", "", 1, id="a call in a fence"),
        pytest.param('{"rain": true}', '{"rain": true}', 0, id="another JSON"),
        pytest.param("```\ncode\n```", "```\ncode\n```", 0, id="a fence with code"),
        pytest.param(f"<think>Hm.</think>{BARE}", "<think>Hm.</think>", 1, id="a thought that nothing tells apart"),
    ],
)
def test_a_stream_with_tools_says_what_a_whole_answer_says(says: str, pieces: str, calls: int) -> None:
    with serving(saying(says)) as served:
        asked = {**HELLO, "tools": TOOLS, "max_tokens": 500}
        message = served.post(CHAT, asked)[1]["choices"][0]["message"]
        choices = [each["choices"][0] for each in served.events(CHAT, asked)]
    assert (message["content"] or "") == pieces
    text = "".join(each["delta"].get("content") or "" for each in choices)
    assert text.strip() == pieces
    found = [call for each in choices for call in each["delta"].get("tool_calls", ())]
    assert [each["function"] for each in found] == [WEATHER] * calls
    assert [each["index"] for each in found] == [*range(calls)]
    assert len({each["id"] for each in found}) == calls
    assert [each["function"] for each in message.get("tool_calls", ())] == [WEATHER] * calls
    assert choices[-1]["finish_reason"] == ("tool_calls" if calls else "stop")


def test_text_that_can_be_no_call_is_streamed_as_it_comes() -> None:
    with serving(saying("It rains in Bern.")) as served:
        deltas = [each["choices"][0]["delta"] for each in served.events(CHAT, {**HELLO, "tools": TOOLS})]
    assert sum(bool(each.get("content")) for each in deltas) > 10


def test_a_call_of_no_tool_is_an_error_that_says_so() -> None:
    with serving(saying(CALL.replace("weather", "whether"))) as served:
        response = served.ask("POST", CHAT, {**HELLO, "tools": TOOLS, "max_tokens": 500})
        answer = json.loads(response.read())
    assert response.status == 500
    assert response.getheader("x-should-retry") == "false"
    assert answer["error"]["code"] == "invalid_tool_call"
    assert "'whether', which is no tool" in answer["error"]["message"]


def test_a_conversation_with_tools_goes_on() -> None:
    with serving(saying("It rains.")) as served:
        call = {"id": "call_1", "type": "function", "function": WEATHER}
        messages = [
            *HELLO["messages"],
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
        ]
        status, answer = served.post(CHAT, {**HELLO, "messages": messages, "tools": TOOLS})
    assert status == 200, answer
    assert answer["choices"][0]["message"]["content"] == "It rains."
