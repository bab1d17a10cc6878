"""Clients that ask at the same time, of models that answer four at a time: whatever they ask, and whoever leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import openai
import pytest
from serving import Serving, serving, until
from talking import FUNCTION, SCHEMA, SEVERAL, TOKEN, TURNS, City

from edgepack import fake
from edgepack_serve.hosting.settings import Settings

models = pytest.mark.parametrize("name", SEVERAL)
TOOLS: list[Any] = [{"type": "function", "function": FUNCTION}]
CITIES = ("Paris", "Rome", "Bern", "Oslo")


@asynccontextmanager
async def client_of(served: Serving) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key=TOKEN, max_retries=0) as client:
        yield client


async def streamed(client: openai.AsyncOpenAI, **asked: Any) -> str:
    stream = await client.chat.completions.create(**asked, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


async def left(client: openai.AsyncOpenAI, pieces: int, **asked: Any) -> None:
    """Leave a stream after so many pieces."""
    async with await client.chat.completions.create(**asked, stream=True) as stream:
        for _ in range(pieces):
            await anext(stream)


async def cut(client: openai.AsyncOpenAI, served: Serving, **asked: Any) -> None:
    """Go before anything is answered."""
    before = served.host.models[asked["model"]].requests
    asking = asyncio.create_task(client.chat.completions.create(**asked))
    while not asking.done() and served.host.models[asked["model"]].requests <= before:
        await asyncio.sleep(0)
    asking.cancel()


@models
def test_tools_schemas_streams_and_leavers_at_once(served: Serving, name: str) -> None:
    asked: dict[str, Any] = {"model": name, "messages": TURNS}

    async def talk() -> list[Any]:
        async with client_of(served) as client:
            chat = client.chat.completions
            return await asyncio.gather(
                chat.create(**asked, tools=TOOLS, tool_choice="required", temperature=2, max_tokens=80),
                chat.parse(**asked, response_format=City, max_tokens=700),
                streamed(client, **asked, max_tokens=12),
                chat.create(**asked, n=3, seed=1, max_tokens=12),
                *(left(client, pieces, **asked, max_tokens=400) for pieces in (1, 2, 5)),
                *(cut(client, served, **asked, max_tokens=400) for _ in range(3)),
                chat.create(**asked, tools=TOOLS, tool_choice="required", temperature=2, max_tokens=80),
            )

    called, parsed, text, several, *_, again = asyncio.run(talk())
    for each in (called, again):
        (call,) = each.choices[0].message.tool_calls
        assert json.loads(call.function.arguments).keys() == SCHEMA["properties"].keys()
    assert isinstance(parsed.choices[0].message.parsed, City)
    assert text
    assert len(several.choices) == 3
    until(lambda: served.host.models[name].requests == len(served.underway) == 0)


@models
def test_conversations_beside_each_other_find_their_past(served: Serving, name: str) -> None:
    async def talk(client: openai.AsyncOpenAI, city: str) -> tuple[int, int]:
        past: list[Any] = [{"role": "user", "content": f"What is there to see in {city}?"}]
        first = await client.chat.completions.create(model=name, messages=past, max_tokens=12)
        assert first.usage
        past += [first.choices[0].message.to_dict(), {"role": "user", "content": "And what else?"}]
        second = await client.chat.completions.create(model=name, messages=past, max_tokens=12)
        assert second.usage
        assert second.usage.prompt_tokens_details
        return first.usage.prompt_tokens, second.usage.prompt_tokens_details.cached_tokens or 0

    async def all_of_them() -> list[tuple[int, int]]:
        async with client_of(served) as client:
            return await asyncio.gather(*(talk(client, city) for city in CITIES))

    for evaluated, cached in asyncio.run(all_of_them()):
        assert cached >= evaluated - 1


def test_a_seed_says_the_same_alone_and_beside_others() -> None:
    seeds = range(12)

    async def asked(client: openai.AsyncOpenAI, seed: int) -> str | None:
        messages: list[Any] = [{"role": "user", "content": "Say anything " * (1 + seed % 3 * 10)}]
        answer = await client.chat.completions.create(
            model="fake", messages=messages, seed=seed, temperature=1, max_tokens=5 + seed
        )
        return answer.choices[0].message.content

    async def alone_and_together(served: Serving) -> tuple[list[str | None], list[str | None]]:
        async with client_of(served) as client:
            alone = [await asked(client, seed) for seed in seeds]
            return alone, await asyncio.gather(*(asked(client, seed) for seed in seeds))

    with serving({"fake": lambda: fake.model(sequences=4)}, settings=Settings(parallel=4)) as served:
        alone, together = asyncio.run(alone_and_together(served))
    assert together == alone
    assert len(set(alone)) == len(seeds)
