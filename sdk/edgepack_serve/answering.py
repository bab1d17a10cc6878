"""A request on a model: its answers, whole or piece by piece. It knows neither dialects nor HTTP.

Whoever waits may be cancelled at any moment: the engine stops then, in the middle of a prompt too.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import aclosing
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from edgepack import Cancelled, Chunk, Model, Result
from edgepack.decoding.options import ChatOptions
from edgepack.errors import UsageError
from edgepack.model import AsyncStream
from edgepack_serve.asked import Asked
from edgepack_serve.withholding import Withholding

T = TypeVar("T")
Piece = tuple[int, Chunk | Result]
"""The number of an answer, and what is new of it; a ``Result`` is its end."""

_AHEAD = 16  # pieces of several answers that wait for a reader


async def whole(model: Model, asked: Asked) -> list[Result]:
    """Return the answers to a request. Raises ``EdgepackError``."""
    return await _together([_answer(model, asked, choice) for choice in range(asked.n)])


async def embedded(model: Model, given: str | Sequence[str], prompt: str | None) -> tuple[NDArray[np.float32], int]:
    """Return the vector of each text, float32 [n, size], in their order, and how many tokens the texts have."""
    texts = [given] if isinstance(given, str) else given
    return await model.aembed(texts, prompt), sum(len(model.tokenize(text)) for text in texts)


async def pieces(model: Model, asked: Asked) -> AsyncGenerator[Piece]:
    """Yield the answers to a request piece by piece, those of several in any mixture. Raises ``EdgepackError``."""
    if asked.n == 1:
        async with aclosing(_choice(model, asked, 0)) as found:
            async for piece in found:
                yield piece
        return
    ready: asyncio.Queue[Piece | BaseException] = asyncio.Queue(_AHEAD)
    tasks = [asyncio.create_task(_into(ready, model, asked, choice)) for choice in range(asked.n)]
    try:
        open_answers = asked.n
        while open_answers:
            got = await ready.get()
            if isinstance(got, BaseException):
                raise got
            open_answers -= isinstance(got[1], Result)
            yield got
    finally:
        await _ended(tasks)


async def _choice(model: Model, asked: Asked, choice: int) -> AsyncGenerator[Piece]:
    async with _stream(model, asked, choice) as stream:
        calls = asked.options.get("tools") and asked.options.get("tool_choice") != "none"
        holding = Withholding(model) if calls else None
        async for chunk in stream:
            yield choice, chunk if holding is None else holding.push(chunk)
    if holding is not None and (rest := holding.rest(stream.result)):
        yield choice, Chunk(rest, ())
    yield choice, _ended_by_itself(stream.result)


async def _into(ready: asyncio.Queue[Piece | BaseException], model: Model, asked: Asked, choice: int) -> None:
    try:
        async with aclosing(_choice(model, asked, choice)) as found:
            async for piece in found:
                await ready.put(piece)
    except Exception as error:
        await ready.put(error)


async def _answer(model: Model, asked: Asked, choice: int) -> Result:
    options = options_of(model, asked, choice)
    if asked.messages is None:
        return _ended_by_itself(await model.agenerate(asked.prompt or "", **options))  # type: ignore[misc]
    return _ended_by_itself(await model.achat(asked.messages, **options))


def _ended_by_itself(result: Result) -> Result:
    if result.finish_reason == "cancelled":
        raise Cancelled("The model was closed before the answer was whole.", hint="Ask again.")
    return result


def _stream(model: Model, asked: Asked, choice: int) -> AsyncStream:
    options = options_of(model, asked, choice)
    if asked.messages is None:
        return model.astream(asked.prompt or "", **options)  # type: ignore[misc]
    return model.astream_chat(asked.messages, **options)


def options_of(model: Model, asked: Asked, choice: int = 0) -> ChatOptions:
    """Return the SDK's options for one answer. Raises ``UsageError`` for a context that is larger than the model's."""
    if asked.context is not None and asked.context > model.context:
        raise UsageError(
            f"num_ctx is {asked.context}, and {asked.model} is loaded with a context of {model.context}.",
            hint="Ask for no more, or serve it with a larger --context.",
        )
    options, seed = asked.options.copy(), asked.options.get("seed")
    if choice and isinstance(seed, int):
        options["seed"] = seed + choice
    _settle_thinking(model, options)
    return options


def _settle_thinking(model: Model, options: ChatOptions) -> None:
    """Have a model think, or answer at once, by what it has for that: many clients say so to every model.

    Of one that never thinks nothing is left to ask, and of one that always does only how much.
    """
    wanted, chat = options.get("thinking"), model.manifest.chat
    known = None if chat is None else chat.thinking
    if known is None and wanted is False:
        del options["thinking"]
    elif known is not None and known.switch is None and wanted is not None:
        del options["thinking"]
        if not wanted:
            options["thinking_tokens"] = 0


async def _together(work: list[Coroutine[Any, Any, T]]) -> list[T]:
    """Return what all give, or raise what the first raises once all have ended."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        return await asyncio.gather(*tasks)
    finally:
        await _ended(tasks)


async def _ended(tasks: list[asyncio.Task[T]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
