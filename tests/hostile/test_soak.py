"""Much of everything at once, for long: nothing grows, nothing is refused, and every answer is what it is alone."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from footprint import assert_flat, held

import edgepack
from edgepack import Model
from edgepack_packager.build import Built

pytestmark = pytest.mark.hostile

ENGINES = ("gguf", "onnx", "mlx")
PROMPTS = [f"{word} upon a time there was {word}" for word in ("Once", "Twice", "a child", "the box", "12 apples")]
ANSWER: dict[str, Any] = {"max_tokens": 4, "temperature": 1.0, "seed": 7}
Portion = Callable[[int], int]


def load(bundle: Built, engine: str) -> Model:
    return edgepack.load(bundle.path, engine, 256, variant=f"{engine}-f32", threads=1)


@pytest.mark.parametrize("engine", ENGINES)
def test_generations_leave_nothing(engine: str, demo_bundle: Built, portion: Portion) -> None:
    rounds = portion(2000) // len(PROMPTS)
    with load(demo_bundle, engine) as model:

        def ask() -> list[str]:
            return [model.generate(prompt, **ANSWER).text for prompt in PROMPTS]

        alone = ask()
        for _ in range(max(4, rounds // 10)):
            ask()
        before = held()
        for _ in range(rounds):
            assert ask() == alone
        assert_flat(before, held(), 8192)


@pytest.mark.parametrize("engine", ENGINES)
def test_loads_leave_nothing(engine: str, demo_bundle: Built, portion: Portion) -> None:
    def once() -> str:
        with load(demo_bundle, engine) as model:
            return model.generate(PROMPTS[0], **ANSWER).text

    alone = once()
    for _ in range(max(4, portion(200) // 2)):  # onnxruntime fills its pools for some hundred loads, and stays there
        once()
    before = held()
    for _ in range(portion(200)):
        assert once() == alone
    assert_flat(before, held(), 16384)


@pytest.mark.parametrize("engine", ENGINES)
def test_tasks_and_threads_are_all_answered(engine: str, demo_bundle: Built, portion: Portion) -> None:
    with load(demo_bundle, engine) as model:
        alone = {prompt: model.generate(prompt, **ANSWER).text for prompt in PROMPTS}
        said: list[tuple[str, str]] = []

        def thread(number: int) -> None:
            for index in range(portion(25)):
                prompt = PROMPTS[(number + index) % len(PROMPTS)]
                if index % 2:
                    said.append((prompt, model.generate(prompt, **ANSWER).text))
                    continue
                with model.stream(prompt, **ANSWER) as stream:
                    said.append((prompt, "".join(chunk.text for chunk in stream)))

        async def task(number: int) -> None:
            for index in range(portion(10)):
                prompt = PROMPTS[(number + index) % len(PROMPTS)]
                if index % 2:
                    said.append((prompt, (await model.agenerate(prompt, **ANSWER)).text))
                    continue
                async with model.astream(prompt, **ANSWER) as stream:
                    said.append((prompt, "".join([chunk.text async for chunk in stream])))

        async def tasks() -> None:
            await asyncio.gather(*(task(number) for number in range(50)))

        threads = [threading.Thread(target=thread, args=(number,)) for number in range(8)]
        for each in threads:
            each.start()
        asyncio.run(tasks())
        for each in threads:
            each.join()
        assert len(said) == 8 * portion(25) + 50 * portion(10)
        assert all(alone[prompt] == text for prompt, text in said)


@pytest.mark.parametrize("kind", ["generator", "asynchronous generator"])
def test_clients_of_a_web_framework_are_all_answered(kind: str, demo_bundle: Built, portion: Portion) -> None:
    """Starlette reads a generator with a pool of threads, each piece on whichever is free."""
    responses = pytest.importorskip("starlette.responses")
    with load(demo_bundle, "gguf") as model:
        alone = {prompt: model.generate(prompt, **ANSWER).text for prompt in PROMPTS}

        def pieces(prompt: str) -> Iterator[str]:
            with model.stream(prompt, **ANSWER) as stream:
                for chunk in stream:
                    yield chunk.text

        async def asynchronous(prompt: str) -> AsyncIterator[str]:
            async with model.astream(prompt, **ANSWER) as stream:
                async for chunk in stream:
                    yield chunk.text

        async def client(number: int) -> None:
            for index in range(portion(25)):
                prompt = PROMPTS[(number + index) % len(PROMPTS)]
                read = pieces if kind == "generator" else asynchronous
                assert await body(responses.StreamingResponse(read(prompt))) == alone[prompt]

        async def clients() -> None:
            async with asyncio.timeout(240):
                await asyncio.gather(*(client(number) for number in range(8)))

        asyncio.run(clients())


async def body(response: Any) -> str:
    """Return what a server would send of a response."""
    sent: list[bytes] = []

    async def receive() -> dict[str, str]:
        await asyncio.Event().wait()
        raise AssertionError("the client stays")

    async def send(message: dict[str, Any]) -> None:
        sent.append(message.get("body", b""))

    await response({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send)
    return b"".join(sent).decode()
