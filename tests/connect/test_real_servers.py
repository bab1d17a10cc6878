"""Servers that run: llama-server and vLLM, where ``EDGEPACK_SERVERS`` names their addresses, with blanks between.

Each has a model with a chat template; ``tests/server_questions.py`` records what one answers, for the quick suite.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from threading import Event, Thread

import pytest
from server_questions import SCHEMA, USER, weather

import edgepack
from edgepack import LanguageModel

pytestmark = pytest.mark.servers
URLS = os.environ.get("EDGEPACK_SERVERS", "").split()


@pytest.fixture(params=URLS or [pytest.param("", marks=pytest.mark.skip(reason="EDGEPACK_SERVERS names none"))])
def model(request: pytest.FixtureRequest) -> Iterator[LanguageModel]:
    with edgepack.connect(request.param) as opened:
        yield opened


def test_the_same_question_has_the_same_answer(model: LanguageModel) -> None:
    first, second = (model.chat(USER, max_tokens=8, temperature=0) for _ in range(2))
    assert first.text == second.text != ""
    with model.stream_chat(USER, max_tokens=8, temperature=0) as stream:
        assert "".join(piece.text for piece in stream) == first.text


def test_an_answer_keeps_its_form(model: LanguageModel) -> None:
    result = model.chat(USER, max_tokens=60, temperature=0, json_schema=SCHEMA)
    assert set(json.loads(result.text)) == {"city"}


def test_an_answer_ends_at_a_stop_and_at_its_limit(model: LanguageModel) -> None:
    cut = model.generate("Once upon a time", max_tokens=4, temperature=0)
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("length", 4)
    assert " " not in model.chat(USER, max_tokens=8, temperature=0, stop=" ").text


def test_a_cancel_from_another_thread_stops_it(model: LanguageModel) -> None:
    read = Event()
    with model.stream_chat([{"role": "user", "content": "Tell a long story."}], max_tokens=300) as stream:
        thread = Thread(target=lambda: (read.wait(), stream.cancel()))
        thread.start()
        for _ in stream:
            read.set()
        thread.join()
    assert stream.result.finish_reason == "cancelled"
    assert model.generate("One", max_tokens=1).usage.completion_tokens == 1


def test_questions_at_the_same_time_are_all_answered(model: LanguageModel) -> None:
    async def asking() -> list[edgepack.Result]:
        return await asyncio.gather(*(model.agenerate(f"{each}.", max_tokens=3) for each in range(4)))

    assert all(result.usage.completion_tokens >= 1 for result in asyncio.run(asking()))


def test_a_conversation_goes_on(model: LanguageModel) -> None:
    chat = model.chat(system="Be brief.", max_tokens=6, temperature=0)
    chat.send("Hello")
    assert chat.send("Again").usage.prompt_tokens > 0
    assert chat.turns == 2


def test_tools_are_shown_to_the_model(model: LanguageModel) -> None:
    plain = model.chat(USER, max_tokens=2, temperature=0)
    shown = model.chat(USER, max_tokens=2, temperature=0, tools=[weather])
    assert shown.usage.prompt_tokens >= plain.usage.prompt_tokens


def test_a_prompt_that_is_too_long_is_told_so(model: LanguageModel) -> None:
    with pytest.raises(edgepack.PromptTooLongError):
        model.generate("word " * ((model.context or 4096) + 100), max_tokens=2)
