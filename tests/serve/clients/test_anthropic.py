"""Anthropic's client: conversations, tools, answers that are parsed, thoughts, errors."""

from __future__ import annotations

import asyncio
from typing import Any

import anthropic
import pytest
from serving import Serving
from talking import FUNCTION, SCHEMA, TOKEN, TURNS, City, all_models, busy, engines


@all_models
def test_claude_holds_a_conversation(claude: anthropic.Anthropic, engine: str) -> None:
    first = claude.messages.create(model=engine, messages=TURNS, max_tokens=40, system="Be brief.")
    (block,) = first.content
    assert block.type == "text"
    said = block.text
    again: Any = [*TURNS, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And of Italy?"}]
    second = claude.messages.create(model=engine, messages=again, max_tokens=1, system="Be brief.")
    assert second.stop_reason == "max_tokens"
    assert (second.usage.cache_read_input_tokens or 0) >= first.usage.input_tokens - 1
    counted = claude.messages.count_tokens(
        model=engine, messages=again, system="Be brief.", thinking={"type": "disabled"}
    )
    assert counted.input_tokens == second.usage.input_tokens + (second.usage.cache_read_input_tokens or 0)
    with claude.messages.stream(model=engine, messages=TURNS, max_tokens=40, system="Be brief.") as stream:
        pieces = list(stream.text_stream)
        final = stream.get_final_message()
    assert "".join(pieces) == said
    assert len(pieces) > 1
    assert final.usage.output_tokens == first.usage.output_tokens
    assert (final.usage.cache_read_input_tokens or 0) + final.usage.input_tokens > 0
    stop = said[len(said) // 2 :][:3]
    cut = claude.messages.create(model=engine, messages=TURNS, max_tokens=40, system="Be brief.", stop_sequences=[stop])
    assert (cut.stop_reason, cut.stop_sequence) == ("stop_sequence", stop)
    begun: Any = [*TURNS, {"role": "assistant", "content": "The capital"}]
    went_on = claude.messages.create(model=engine, messages=begun, max_tokens=8)
    assert went_on.usage.output_tokens > 0


@all_models
def test_claude_lists_the_models(claude: anthropic.Anthropic, engine: str) -> None:
    found = claude.models.retrieve(engine)
    assert (found.type, found.id, found.created_at.tzinfo is not None) == ("model", engine, True)
    assert found in list(claude.models.list())
    with pytest.raises(anthropic.NotFoundError, match="another"):
        claude.models.retrieve("another")


@engines
def test_claude_calls_a_tool_and_hears_what_it_gave(claude: anthropic.Anthropic, engine: str) -> None:
    tool: Any = {"name": "weather", "description": FUNCTION["description"], "input_schema": SCHEMA}
    asked: Any = {"model": engine, "messages": TURNS, "tools": [tool], "max_tokens": 80}
    for choice in ({"type": "any"}, {"type": "tool", "name": "weather", "disable_parallel_tool_use": True}):
        message = claude.messages.create(**asked, tool_choice=choice, extra_body={"temperature": 2})
        assert message.stop_reason == "tool_use"
        (call,) = message.content
        assert call.type == "tool_use"
        assert call.input.keys() == {"city", "days"}
        with claude.messages.stream(**asked, tool_choice=choice) as stream:
            (streamed,) = stream.get_final_message().content
        assert streamed.type == "tool_use"
        assert streamed.input.keys() == {"city", "days"}
    gave = {"type": "tool_result", "tool_use_id": call.id, "content": "no station", "is_error": True}
    told: Any = [*TURNS, {"role": "assistant", "content": message.content}, {"role": "user", "content": [gave]}]
    last = claude.messages.create(**{**asked, "messages": told}, tool_choice={"type": "none"})
    assert last.stop_reason != "tool_use"
    assert claude.messages.count_tokens(model=engine, messages=told, tools=[tool]).input_tokens > 60


@engines
def test_claude_parses_an_answer(claude: anthropic.Anthropic, engine: str) -> None:
    parsed = claude.messages.parse(model=engine, messages=TURNS, max_tokens=700, output_format=City)
    assert isinstance(parsed.parsed_output, City)


def test_claude_hears_a_thought(claude: anthropic.Anthropic) -> None:
    asked: Any = {"model": "thinker", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 100}
    thought, said = claude.messages.create(**asked, thinking={"type": "enabled", "budget_tokens": 64}).content
    assert (thought.type, said.type) == ("thinking", "text")
    with claude.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    assert [block.type for block in final.content] == ["thinking", "text"]
    past: Any = [*asked["messages"], {"role": "assistant", "content": final.content}, *asked["messages"]]
    (block,) = claude.messages.create(**{**asked, "messages": past}, thinking={"type": "disabled"}).content
    assert block.type == "text"
    assert block.text == "Good day!"


def test_claude_from_an_event_loop(served: Serving) -> None:
    async def talk() -> tuple[str, str]:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key=TOKEN, max_retries=0) as client:
            whole = await client.messages.create(model="gguf", messages=TURNS, max_tokens=8)
            async with client.messages.stream(model="gguf", messages=TURNS, max_tokens=8) as stream:
                streamed = "".join([text async for text in stream.text_stream])
            (block,) = whole.content
            assert block.type == "text"
            return block.text, streamed

    whole, streamed = asyncio.run(talk())
    assert whole == streamed


def test_claude_raises_its_own_errors(claude: anthropic.Anthropic, served: Serving) -> None:
    asked: Any = {"messages": TURNS, "max_tokens": 8}
    with pytest.raises(anthropic.NotFoundError, match="'opus' is not served here") as missing:
        claude.messages.create(**asked, model="opus")
    assert missing.value.type == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="container cannot be honoured"):
        claude.messages.create(**asked, model="gguf", container="1")
    with pytest.raises(anthropic.BadRequestError, match="'seed'"):
        claude.messages.create(**asked, model="gguf", extra_body={"seed": 1})
    with pytest.raises(anthropic.BadRequestError, match="tool_choice was given without tools"):
        claude.messages.create(**asked, model="gguf", tool_choice={"type": "any"})
    image: Any = {"type": "image", "source": {"type": "url", "url": "http://example.org/a.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\[0\].content\[0\] is a block of the type 'image'"):
        claude.messages.create(model="gguf", max_tokens=8, messages=[{"role": "user", "content": [image]}])
    with pytest.raises(anthropic.AuthenticationError) as refused:
        anthropic.Anthropic(base_url=served.url, api_key="another", max_retries=0).messages.create(
            **asked, model="gguf"
        )
    assert refused.value.type == "authentication_error"
    with busy(served), pytest.raises(anthropic.RateLimitError):
        claude.messages.create(**asked, model="gguf")
