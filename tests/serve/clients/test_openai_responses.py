"""OpenAI's client on /v1/responses: items, events in their order, functions, thoughts."""

from __future__ import annotations

import json
from typing import Any

import openai
from talking import ASKED, FUNCTION, City, engines


@engines
def test_openai_responds(open_ai: openai.OpenAI, engine: str) -> None:
    first = open_ai.responses.create(model=engine, input=ASKED, instructions="Be brief.", max_output_tokens=40)
    assert first.output_text
    assert first.usage
    assert first.store is False
    past: Any = [{"role": "user", "content": ASKED}, *first.output, {"role": "user", "content": "And of Italy?"}]
    second = open_ai.responses.create(model=engine, input=past, instructions="Be brief.", max_output_tokens=1)
    assert second.usage
    assert second.usage.input_tokens_details.cached_tokens >= first.usage.input_tokens - 1
    assert (second.status, second.incomplete_details and second.incomplete_details.reason) == (
        "incomplete",
        "max_output_tokens",
    )


@engines
def test_openai_streams_a_response(open_ai: openai.OpenAI, engine: str) -> None:
    whole = open_ai.responses.create(model=engine, input=ASKED, max_output_tokens=40)
    with open_ai.responses.stream(model=engine, input=ASKED, max_output_tokens=40) as stream:
        events = list(stream)
        final = stream.get_final_response()
    kinds = [event.type for event in events]
    assert [getattr(event, "sequence_number", None) for event in events] == [*range(len(events))]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        f"response.{whole.status}",
    ]
    assert set(kinds[4:-4]) == {"response.output_text.delta"}
    assert final.output_text == whole.output_text
    assert final.usage
    assert whole.usage
    assert final.usage.output_tokens == whole.usage.output_tokens


@engines
def test_openai_parses_a_response_and_calls_a_function(open_ai: openai.OpenAI, engine: str) -> None:
    parsed = open_ai.responses.parse(model=engine, input=ASKED, text_format=City, max_output_tokens=700)
    assert isinstance(parsed.output_parsed, City)
    tools: Any = [{"type": "function", "strict": True, **FUNCTION}]
    asked: Any = {"model": engine, "tools": tools, "max_output_tokens": 80}
    called = open_ai.responses.create(**asked, input=ASKED, tool_choice="required", temperature=2)
    (call,) = called.output
    assert call.type == "function_call"
    assert (call.name, json.loads(call.arguments).keys()) == ("weather", {"city", "days"})
    with open_ai.responses.stream(**asked, input=ASKED, tool_choice={"type": "function", "name": "weather"}) as stream:
        kinds = [event.type for event in stream]
        (streamed,) = stream.get_final_response().output
    assert kinds[2:-1] == [
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
    ]
    assert streamed.type == "function_call"
    gave = {"type": "function_call_output", "call_id": call.call_id, "output": "rain"}
    past: Any = [{"role": "user", "content": ASKED}, call, gave]
    last = open_ai.responses.create(**asked, input=past, tool_choice="none")
    assert last.usage
    assert called.usage
    assert last.usage.input_tokens > called.usage.input_tokens
    assert [item.type for item in last.output] == ["message"]


def test_openai_hears_a_thought(open_ai: openai.OpenAI) -> None:
    thought, said = open_ai.responses.create(model="thinker", input="Hello").output
    assert thought.type == "reasoning"
    assert thought.content
    assert thought.content[0].text.strip() == "A greeting."
    assert said.type == "message"
    with open_ai.responses.stream(model="thinker", input="Hello") as stream:
        final = stream.get_final_response()
    assert [item.type for item in final.output] == ["reasoning", "message"]
    assert final.output_text == "Good day!"
    assert final.usage
    assert final.usage.output_tokens_details.reasoning_tokens > 0
    past: Any = [{"role": "user", "content": "Hello"}, *final.output, {"role": "user", "content": "Hello"}]
    assert (
        open_ai.responses.create(model="thinker", input=past, reasoning={"effort": "none"}).output_text == "Good day!"
    )
