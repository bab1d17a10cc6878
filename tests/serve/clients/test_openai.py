"""OpenAI's client: conversations, tools, answers that are parsed, texts, vectors, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import openai
import pytest
from serving import Serving
from talking import ASKED, ENGINES, FUNCTION, TOKEN, TURNS, City, busy, engines


@engines
def test_openai_holds_a_conversation(open_ai: openai.OpenAI, engine: str) -> None:
    first = open_ai.chat.completions.create(model=engine, messages=TURNS, max_tokens=40)
    said = first.choices[0].message.content
    assert said
    again = [*TURNS, {"role": "assistant", "content": said}, {"role": "user", "content": "And of Italy?"}]
    second = open_ai.chat.completions.create(model=engine, messages=again, max_tokens=8)
    assert second.usage
    assert first.usage
    assert second.usage.prompt_tokens_details
    assert (second.usage.prompt_tokens_details.cached_tokens or 0) >= first.usage.prompt_tokens - 1
    assert second.choices[0].finish_reason in ("stop", "length")
    with open_ai.chat.completions.stream(model=engine, messages=TURNS, max_tokens=40) as stream:
        pieces = [event.delta for event in stream if event.type == "content.delta"]
    assert "".join(pieces) == said
    assert len(pieces) > 1
    stop = said[len(said) // 2 :][:3]
    cut = open_ai.chat.completions.create(model=engine, messages=TURNS, max_tokens=40, stop=stop)
    assert cut.choices[0].message.content == said[: said.index(stop)]


@engines
def test_openai_samples_again_by_its_seed(open_ai: openai.OpenAI, engine: str) -> None:
    def said(seed: int) -> str | None:
        answer = open_ai.chat.completions.create(model=engine, messages=TURNS, max_tokens=12, seed=seed, temperature=2)
        return answer.choices[0].message.content

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1


@engines
def test_openai_parses_an_answer(open_ai: openai.OpenAI, engine: str) -> None:
    parsed = open_ai.chat.completions.parse(model=engine, messages=TURNS, response_format=City, max_tokens=700)
    assert isinstance(parsed.choices[0].message.parsed, City)
    free = open_ai.chat.completions.create(
        model=engine, messages=TURNS, response_format={"type": "json_object"}, max_tokens=60
    )
    assert isinstance(json.loads(free.choices[0].message.content or ""), dict)


@engines
def test_openai_calls_a_tool_and_hears_what_it_gave(open_ai: openai.OpenAI, engine: str) -> None:
    tools: Any = [{"type": "function", "function": FUNCTION}]
    named: Any = {"type": "function", "function": {"name": "weather"}}
    for choice in ("required", named):
        asked = {"model": engine, "messages": TURNS, "tools": tools, "tool_choice": choice, "temperature": 2}
        answer = open_ai.chat.completions.create(**asked, max_tokens=80)
        message, why = answer.choices[0].message, answer.choices[0].finish_reason
        assert why == "tool_calls"
        (call,) = message.tool_calls or []
        assert call.type == "function"
        assert json.loads(call.function.arguments).keys() == {"city", "days"}
        with open_ai.chat.completions.stream(**asked, max_tokens=80) as stream:
            final = stream.get_final_completion()
        assert not final.choices[0].message.content
        assert [each.function.name for each in final.choices[0].message.tool_calls or []] == ["weather"]
    told: Any = [*TURNS, message.model_dump(), {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    last = open_ai.chat.completions.create(model=engine, messages=told, tools=tools, tool_choice="none", max_tokens=8)
    assert last.choices[0].message.tool_calls is None
    assert last.usage
    assert answer.usage
    assert last.usage.prompt_tokens > answer.usage.prompt_tokens


@engines
def test_openai_goes_on_with_a_text(open_ai: openai.OpenAI, engine: str) -> None:
    whole = open_ai.completions.create(model=engine, prompt="The capital of", max_tokens=6)
    with open_ai.completions.create(model=engine, prompt="The capital of", max_tokens=6, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream if chunk.choices) == whole.choices[0].text


def test_openai_embeds(open_ai: openai.OpenAI) -> None:
    vectors = open_ai.embeddings.create(model="embedder", input=["one", "two"]).data
    assert [len(each.embedding) for each in vectors] == [8, 8]
    assert vectors[0].embedding != vectors[1].embedding


def test_openai_from_an_event_loop(served: Serving) -> None:
    async def talk() -> tuple[str | None, str, str]:
        async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=TOKEN, max_retries=0) as client:
            one, two = await asyncio.gather(
                *(client.chat.completions.create(model=each, messages=TURNS, max_tokens=8) for each in ENGINES)
            )
            streamed = ""
            async for chunk in await client.chat.completions.create(
                model="gguf", messages=TURNS, max_tokens=8, stream=True
            ):
                streamed += chunk.choices[0].delta.content or ""
            response = await client.responses.create(model="onnx", input=ASKED, max_output_tokens=8)
            assert two.choices[0].message.content == response.output_text
            return one.choices[0].message.content, streamed, response.output_text

    whole, streamed, said = asyncio.run(talk())
    assert whole == streamed
    assert said


def test_openai_raises_its_own_errors(open_ai: openai.OpenAI, served: Serving) -> None:
    create = open_ai.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="'gpt' is not served here"):
        create(model="gpt", messages=TURNS)
    with pytest.raises(openai.BadRequestError, match="logit_bias cannot be honoured") as refused:
        create(model="gguf", messages=TURNS, logit_bias={"1": 2})
    assert refused.value.param == "logit_bias"
    with pytest.raises(openai.BadRequestError, match="temperature") as refused:
        create(model="gguf", messages=TURNS, temperature=-1)
    assert refused.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as refused:
        create(model="gguf", messages=[{"role": "user", "content": "word " * 3000}])
    assert refused.value.code == "context_length_exceeded"
    for field, value in (("previous_response_id", "resp_1"), ("store", True), ("background", True)):
        given: Any = {field: value}
        with pytest.raises(openai.BadRequestError, match=f"{field} cannot be honoured") as refused:
            open_ai.responses.create(model="gguf", input="Hello", **given)
        assert refused.value.param == field
    with pytest.raises(openai.BadRequestError, match="tool_choice was given without tools"):
        open_ai.responses.create(model="gguf", input="Hello", tool_choice="required")
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="another", max_retries=0).models.list()
    with busy(served), pytest.raises(openai.RateLimitError):
        create(model="gguf", messages=TURNS)
