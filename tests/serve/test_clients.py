"""The official client of OpenAI's interface against the server, as its users call it: on real engines."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI
from openai.types.chat import ChatCompletionUserMessageParam
from pydantic import BaseModel
from serving import HERMES, TOOLS, Serving, serving, serving_bundles

from edgepack import fake

ASK: ChatCompletionUserMessageParam = {"role": "user", "content": "What is edgepack?"}


@pytest.fixture(scope="module", params=["gguf", "onnx"])
def served(request: pytest.FixtureRequest) -> Iterator[Serving]:
    bundle: Path = request.getfixturevalue("gguf_variant" if request.param == "gguf" else "one_variant")
    with serving_bundles(f"demo={bundle}") as running:
        yield running


@pytest.fixture
def client(served: Serving) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0) as made:
        yield made


class Size(BaseModel):
    number: int
    unit: str


def test_an_answer(client: OpenAI) -> None:
    answer = client.chat.completions.create(model="demo", messages=[ASK], temperature=0, seed=1)
    assert answer.choices[0].message.content == (
        "Edgepack is a tool that packs small language models into bundles that run on edge devices."
    )
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


def test_a_stream(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="demo", messages=[ASK], temperature=0, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    text = "".join(each.choices[0].delta.content or "" for each in chunks if each.choices)
    assert text.startswith("Edgepack is a tool")
    assert chunks[-1].usage is not None


def test_the_helper_of_streams(client: OpenAI) -> None:
    with client.chat.completions.stream(model="demo", messages=[ASK], temperature=0) as stream:
        stream.until_done()
        answer = stream.get_final_completion()
    assert (answer.choices[0].message.content or "").startswith("Edgepack is a tool")
    assert answer.choices[0].finish_reason == "stop"


def test_a_parsed_answer(client: OpenAI) -> None:
    answer = client.chat.completions.parse(model="demo", messages=[ASK], response_format=Size, max_tokens=60)
    assert isinstance(answer.choices[0].message.parsed, Size)


def test_a_conversation_that_goes_on_in_an_event_loop(served: Serving) -> None:
    async def converse() -> list[str]:
        async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key="any") as client:
            stream = await client.chat.completions.create(model="demo", messages=[ASK], temperature=0, stream=True)
            first = "".join([each.choices[0].delta.content or "" async for each in stream])
            messages = [ASK, {"role": "assistant", "content": first}, {"role": "user", "content": "What is a token?"}]
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(model="demo", messages=messages, temperature=0)  # type: ignore[arg-type]
                    for _ in range(4)
                )
            )
            return [each.choices[0].message.content or "" for each in answers]

    assert {each[:7] for each in asyncio.run(converse())} == {"A token"}


def test_models_and_completions(client: OpenAI) -> None:
    assert [each.id for each in client.models.list()] == ["demo"]
    assert client.models.retrieve("demo").object == "model"
    answer = client.completions.create(model="demo", prompt="Edgepack is", max_tokens=4, logprobs=2, echo=False)
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 4
    echoed = client.completions.create(model="demo", prompt=["Edgepack is"], max_tokens=4, echo=True, stream=True)
    assert "".join(each.choices[0].text for each in echoed).startswith("Edgepack is")


def test_errors_are_the_clients_own(client: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="It is one of: demo"):
        client.chat.completions.create(model="gpt-4o", messages=[ASK])
    with pytest.raises(openai.BadRequestError, match="logit_bias") as refused:
        client.chat.completions.create(model="demo", messages=[ASK], logit_bias={"1": 2})
    assert refused.value.param == "logit_bias"


def test_a_client_that_leaves_its_stream(client: OpenAI, served: Serving) -> None:
    with client.chat.completions.create(model="demo", messages=[ASK], stream=True, max_tokens=500) as stream:
        next(stream)
    assert client.chat.completions.create(model="demo", messages=[ASK], max_tokens=2).choices


def test_tools() -> None:
    tools: Any = TOOLS
    says = '<tool_call>\n{"name": "weather", "arguments": {"place": "Bern"}}\n</tool_call>'
    with serving({"fake": lambda: fake.model(says=says, template=HERMES)}) as served:
        client = OpenAI(base_url=f"{served.url}/v1", api_key="any")
        answer = client.chat.completions.create(model="fake", messages=[ASK], tools=tools, max_tokens=500)
        with client.chat.completions.stream(model="fake", messages=[ASK], tools=tools, max_tokens=500) as stream:
            streamed = stream.until_done().get_final_completion()
    for each in (answer, streamed):
        (call,) = each.choices[0].message.tool_calls or []
        assert call.type == "function"
        assert (call.function.name, json.loads(call.function.arguments)) == ("weather", {"place": "Bern"})
        assert each.choices[0].finish_reason == "tool_calls"


def test_embeddings() -> None:
    with serving({"fake": lambda: fake.embedding_model(prompts={"query": "Q: "})}) as served:
        client = OpenAI(base_url=f"{served.url}/v1", api_key="any", max_retries=0)
        plain = client.embeddings.create(model="fake", input=["a", "b"], encoding_format="float")
        packed = client.embeddings.create(model="fake", input=["a", "b"])
        query = client.embeddings.create(model="fake", input="a", extra_body={"prompt": "query"})
        with pytest.raises(openai.BadRequestError, match="dimensions"):
            client.embeddings.create(model="fake", input="a", dimensions=3)
        with pytest.raises(openai.BadRequestError, match="writes none"):
            client.chat.completions.create(model="fake", messages=[ASK])
    assert [len(each.embedding) for each in plain.data] == [8, 8]
    assert packed.data[1].embedding == pytest.approx(plain.data[1].embedding)
    assert query.data[0].embedding != pytest.approx(plain.data[0].embedding)
    assert plain.usage.prompt_tokens == 2


def test_two_models_of_one_server(one_variant: Path) -> None:
    with serving_bundles(f"a={one_variant}", f"b={one_variant}") as served, httpx.Client(base_url=served.url) as http:
        for name in "ab":
            body = {"model": name, "messages": [ASK], "temperature": 0, "max_tokens": 3}
            assert http.post("/v1/chat/completions", json=body).status_code == 200
        assert {each["state"] for each in http.get("/status.json").json()["models"]} == {"loaded"}
