"""The official clients of OpenAI, Anthropic and Ollama talk with one server, over gguf and onnx."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import anthropic
import httpx
import ollama
import openai
import pytest
from pydantic import BaseModel
from serving import Serving, serving

import edgepack
from edgepack import fake

ENGINES = ("gguf", "onnx")
ASKED = "What is the capital of France?"
TURNS: list[Any] = [{"role": "user", "content": ASKED}]
TOKEN = "a-token-of-the-tests"


class City(BaseModel):
    """What the answers are bound to."""

    name: Literal["Paris", "Rome"]
    river: bool


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"city": {"enum": ["Paris", "Rome"]}, "days": {"type": "integer", "minimum": 1, "maximum": 9}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
FUNCTION = {"name": "weather", "description": "Tell the weather of a city.", "parameters": SCHEMA}


@pytest.fixture(scope="module")
def served(tool_bundle: Path) -> Iterator[Serving]:
    models = {
        "gguf": lambda: edgepack.load(tool_bundle, "gguf"),
        "onnx": lambda: edgepack.load(tool_bundle, "onnx"),
        "thinker": lambda: fake.model(says="Good day!", thinks="A greeting."),
        "embedder": lambda: fake.embedding_model(size=8),
    }
    with serving(models, token=TOKEN) as running:
        yield running


@pytest.fixture(scope="module")
def open_ai(served: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def claude(served: Serving) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=served.url, api_key=TOKEN, max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def llama(served: Serving) -> ollama.Client:
    return ollama.Client(served.url, headers={"Authorization": f"Bearer {TOKEN}"})


engines = pytest.mark.parametrize("engine", ENGINES)


# OpenAI: chat


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
    parsed = open_ai.chat.completions.parse(model=engine, messages=TURNS, response_format=City, max_tokens=300)
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


# OpenAI: responses


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
    parsed = open_ai.responses.parse(model=engine, input=ASKED, text_format=City, max_output_tokens=300)
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


# OpenAI: errors


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
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served.url}/v1", api_key="another", max_retries=0).models.list()
    with busy(served), pytest.raises(openai.RateLimitError):
        create(model="gguf", messages=TURNS)


@contextmanager
def busy(served: Serving) -> Iterator[None]:
    """Have as many wait as may."""
    hosted = served.host.find("gguf")
    hosted.requests += 1000
    try:
        yield
    finally:
        hosted.requests -= 1000


# Anthropic


@engines
def test_claude_holds_a_conversation(claude: anthropic.Anthropic, engine: str) -> None:
    first = claude.messages.create(model=engine, messages=TURNS, max_tokens=40, system="Be brief.")
    (block,) = first.content
    assert block.type == "text"
    said = block.text
    again: Any = [*TURNS, {"role": "assistant", "content": first.content}, {"role": "user", "content": "And of Italy?"}]
    second = claude.messages.create(model=engine, messages=again, max_tokens=1, system="Be brief.")
    assert second.stop_reason == "max_tokens"
    assert (second.usage.cache_read_input_tokens or 0) >= first.usage.input_tokens - 1
    counted = claude.messages.count_tokens(model=engine, messages=again, system="Be brief.")
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
    parsed = claude.messages.parse(model=engine, messages=TURNS, max_tokens=300, output_format=City)
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


# Ollama


@engines
def test_ollama_holds_a_conversation(llama: ollama.Client, engine: str) -> None:
    short: Any = {"num_predict": 40, "num_ctx": 512, "temperature": 0}
    first = llama.chat(engine, TURNS, options=short, keep_alive="5m")
    said = first.message.content
    assert said
    pieces = list(llama.chat(f"{engine}:latest", TURNS, options=short, stream=True))
    assert "".join(chunk.message.content or "" for chunk in pieces) == said
    assert [chunk.done for chunk in pieces] == [False] * (len(pieces) - 1) + [True]
    last = pieces[-1]
    assert (last.eval_count, last.prompt_eval_count) == (first.eval_count, first.prompt_eval_count)
    assert (last.total_duration or 0) >= (last.eval_duration or 0) > 0
    stop = said[len(said) // 2 :][:3]
    cut = llama.chat(engine, TURNS, options={**short, "stop": [stop]})
    assert cut.message.content == said[: said.index(stop)]
    hot = {**short, "temperature": 2, "seed": 3, "num_predict": 8}
    assert llama.chat(engine, TURNS, options=hot).message == llama.chat(engine, TURNS, options=hot).message
    cold = llama.generate(engine, ASKED, options=short)
    assert cold.response == said
    assert "".join(each.response or "" for each in llama.generate(engine, ASKED, options=short, stream=True)) == said
    assert llama.generate(engine, "The capital of", raw=True, options={"num_predict": 4}).done_reason == "length"


@engines
def test_ollama_binds_an_answer_and_calls_a_tool(llama: ollama.Client, engine: str) -> None:
    bound = llama.chat(engine, TURNS, format=City.model_json_schema(), options={"num_predict": 300})
    assert City.model_validate_json(bound.message.content or "")
    assert isinstance(json.loads(llama.generate(engine, ASKED, format="json").response or ""), dict)
    call = {"function": {"name": "weather", "arguments": {"city": "Rome", "days": 1}}}
    told: Any = [*TURNS, {"role": "assistant", "tool_calls": [call]}]
    told.append({"role": "tool", "tool_name": "weather", "content": "rain"})
    tools: Any = [{"type": "function", "function": FUNCTION}]
    plain = llama.chat(engine, TURNS, tools=tools, options={"num_predict": 8})
    last = llama.chat(engine, told, tools=tools, options={"num_predict": 8})
    assert (last.prompt_eval_count or 0) > (plain.prompt_eval_count or 0)


def test_ollama_reads_a_call(served: Serving) -> None:
    said = '<tool_call>{"name": "weather", "arguments": {"city": "Rome", "days": 1}}</tool_call>'
    template = '{# "arguments": <tool_call> #}{{ tools and "" }}' + fake._TEMPLATE
    tools: Any = [{"type": "function", "function": FUNCTION}]
    with serving({"caller": lambda: fake.model(says=said, template=template)}) as running:
        client = ollama.Client(running.url)
        whole = client.chat("caller", TURNS, tools=tools)
        (call,) = whole.message.tool_calls or []
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Rome", "days": 1})
        assert not whole.message.content
        calling, last = client.chat("caller", TURNS, tools=tools, stream=True)
        assert [each.function.name for each in calling.message.tool_calls or []] == ["weather"]
        assert (calling.done, last.done) == (False, True)


def test_ollama_hears_a_thought(llama: ollama.Client) -> None:
    hello: Any = [{"role": "user", "content": "Hello"}]
    whole = llama.chat("thinker", hello, think=True)
    assert ((whole.message.thinking or "").strip(), whole.message.content) == ("A greeting.", "Good day!")
    assert llama.chat("thinker", hello, think=False).message.thinking is None
    pieces = llama.generate("thinker", "Hello", think=True, stream=True)
    assert "".join(each.thinking or "" for each in pieces).strip() == "A greeting."


def test_ollama_asks_what_there_is(llama: ollama.Client) -> None:
    assert {each.model for each in llama.list().models} == {
        f"{name}:latest" for name in (*ENGINES, "thinker", "embedder")
    }
    llama.chat("gguf", TURNS, options={"num_predict": 1}, keep_alive=-1)
    assert "gguf:latest" in {each.model for each in llama.ps().models}
    shown = llama.show("gguf:latest")
    assert shown.details
    assert shown.details.family == "llama"
    assert shown.modelinfo
    assert shown.modelinfo["llama.context_length"] == 1024
    assert llama.show("embedder").capabilities == ["embedding"]
    assert [len(each) for each in llama.embed("embedder", ["one", "two"]).embeddings] == [8, 8]


def test_ollama_from_an_event_loop(served: Serving) -> None:
    async def talk() -> tuple[str | None, str]:
        client = ollama.AsyncClient(served.url, headers={"Authorization": f"Bearer {TOKEN}"})
        whole = await client.chat("onnx", TURNS, options={"num_predict": 8})
        streamed = ""
        async for chunk in await client.chat("onnx", TURNS, options={"num_predict": 8}, stream=True):
            streamed += chunk.message.content or ""
        return whole.message.content, streamed

    whole, streamed = asyncio.run(talk())
    assert whole == streamed


def test_ollama_raises_its_own_errors(llama: ollama.Client, served: Serving) -> None:
    def status(**asked: Any) -> tuple[int, str]:
        with pytest.raises(ollama.ResponseError) as refused:
            llama.chat(**{"model": "gguf", "messages": TURNS, **asked})
        return refused.value.status_code, refused.value.error

    assert status(model="qwen3:8b") == (
        404,
        "model: 'qwen3:8b' is not served here. It is one of: gguf, onnx, thinker, embedder.",
    )
    for name, value in (("num_gpu", 1), ("mirostat", 2), ("presence_penalty", 0.5)):
        assert status(options={name: value})[1].startswith(f"options.{name} cannot be honoured here.")
    code, why = status(options={"num_ctx": 4096})
    assert (code, "loaded with a context of 1024" in why) == (400, True)
    assert status(think=True)[1].startswith("thinking was given, and this bundle's model does not think")
    assert status(keep_alive="soon")[1].startswith("keep_alive is 'soon'")
    ignored = httpx.post(
        f"{served.url}/api/chat",
        json={
            "model": "gguf",
            "messages": TURNS,
            "stream": False,
            "surprise": 1,
            "options": {"num_predict": 1, "new": 2},
        },
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert ignored.status_code == 200
    with busy(served):
        assert status()[0] == 429
