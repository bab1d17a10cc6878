"""Ollama's client: conversations, texts, tools, what there is, errors."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import ollama
import pytest
from serving import Serving, serving
from talking import ASKED, ENGINES, FUNCTION, TOKEN, TURNS, City, busy, engines

from edgepack import fake


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
    bound = llama.chat(engine, TURNS, format=City.model_json_schema(), options={"num_predict": 700})
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
