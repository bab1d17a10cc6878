"""The models that `llm` finds here: each installed bundle by its name, and ``edgepack`` for any other one.

A model is opened when it is first asked, and stays for the process until another is asked: the turns of ``llm chat``
find the conversation in its cache.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator
from functools import lru_cache
from threading import Lock
from typing import Protocol

import llm
from llm.parts import StreamEvent
from pydantic import Field

import edgepack
from edgepack.bundle import installed
from edgepack_llm import asked

_one_load = Lock()


class _Register(Protocol):
    def __call__(self, model: llm.Model, async_model: llm.AsyncModel) -> None: ...


@llm.hookimpl
def register_models(register: _Register) -> None:
    """Tell `llm` of the models."""
    register(EdgepackModel(), AsyncEdgepackModel())
    for name in installed.known():
        register(EdgepackModel(name), AsyncEdgepackModel(name))


class Sampled(llm.Model.Options):
    """What may be given with ``-o``. What is left out is the bundle's own, or the server's."""

    max_tokens: int | None = Field(default=None, description="The most tokens of an answer, its thought included")
    temperature: float | None = Field(default=None, description="0 for the likeliest token each time")
    top_p: float | None = Field(default=None, description="Draw from the likeliest tokens of so much probability")
    top_k: int | None = Field(default=None, description="Draw from so many of the likeliest tokens; 0: all")
    min_p: float | None = Field(default=None, description="Draw from tokens of so much of the likeliest's probability")
    repetition_penalty: float | None = Field(default=None, description="Above 1, what was said becomes less likely")
    seed: int | None = Field(default=None, description="The same answer for the same question")
    stop: str | list[str] | None = Field(default=None, description="A text at which the answer ends, or several")
    regex: str | None = Field(default=None, description="What the whole answer must match")
    thinking: bool | None = Field(default=None, description="Whether the model thinks before it answers")


class Anywhere(Sampled):
    """Those of a model without a name."""

    where: str | None = Field(default=None, description="A bundle's folder, or the address of a server")


class _Asking:
    """What a model is, waited for or not."""

    can_stream = True
    supports_schema = True
    supports_tools = True
    Options: type[Sampled]

    def __init__(self, name: str | None = None) -> None:
        self.model_id = "edgepack" if name is None else f"edgepack/{name}"
        self.Options = Anywhere if name is None else Sampled
        self._name = name

    def _opened(self, prompt: llm.Prompt) -> edgepack.LanguageModel:
        if self._name is not None:  # also where a folder of that name lies about
            where = str(installed.find(self._name) or self._name)
        elif (where := getattr(prompt.options, "where", None) or "") == "":
            raise edgepack.UsageError(
                "edgepack was given no bundle.", hint="Add -o where PATH, or ask one that is installed: llm models"
            )
        with _one_load:
            return _open(where)


@lru_cache(maxsize=1)
def _open(where: str) -> edgepack.LanguageModel:
    return edgepack.open(where)


class EdgepackModel(_Asking, llm.Model):
    """A bundle, or a model on a server."""

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: llm.Conversation | None
    ) -> Iterator[str | StreamEvent]:
        """Answer, piece by piece."""
        with self._opened(prompt).stream_chat(asked.messages(prompt), **asked.options(prompt)) as answer:
            for chunk in answer:
                yield from _pieces(chunk, prompt.hide_reasoning)
        _finish(response, answer.result)


class AsyncEdgepackModel(_Asking, llm.AsyncModel):
    """The same for an event loop."""

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: llm.AsyncConversation | None
    ) -> AsyncGenerator[str | StreamEvent, None]:
        """Answer, piece by piece."""
        model = await asyncio.to_thread(self._opened, prompt)
        async with model.astream_chat(asked.messages(prompt), **asked.options(prompt)) as answer:
            async for chunk in answer:
                for piece in _pieces(chunk, prompt.hide_reasoning):
                    yield piece
        _finish(response, answer.result)


def _pieces(chunk: edgepack.Chunk, hide_reasoning: bool) -> Iterator[StreamEvent]:
    if chunk.reasoning and not hide_reasoning:
        yield StreamEvent(type="reasoning", chunk=chunk.reasoning)
    if chunk.text:
        yield StreamEvent(type="text", chunk=chunk.text)


def _finish(response: llm.Response | llm.AsyncResponse, result: edgepack.Result) -> None:
    for call in result.tool_calls:
        response.add_tool_call(llm.ToolCall(call.name, call.arguments, call.id))
    if result.usage.counted:
        usage = result.usage
        details = {"cached_tokens": usage.cached_tokens, "reasoning_tokens": usage.reasoning_tokens}
        response.set_usage(input=usage.prompt_tokens, output=usage.completion_tokens, details=details)
