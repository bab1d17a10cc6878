"""One application, a model here and the same one on edgepack's own server: every call, stream and error is the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import pytest
from serving import Serving, serving

import edgepack
from edgepack import LanguageModel, fake

SAYS = "Good day to you all!"
HELLO = [{"role": "user", "content": "Hello"}]


def made() -> edgepack.Model:
    return fake.model(says=SAYS, thinks="A greeting.")


@pytest.fixture(scope="module")
def served() -> Iterator[Serving]:
    with serving({"fake": made}) as running:
        yield running


@pytest.fixture(params=["here", "there"])
def model(request: pytest.FixtureRequest, served: Serving) -> Iterator[LanguageModel]:
    opening: Callable[[], AbstractContextManager[LanguageModel]]
    opening = made if request.param == "here" else lambda: edgepack.connect(served.url)
    with opening() as opened:
        yield opened


def test_a_text_is_continued(model: LanguageModel) -> None:
    result = model.generate("Hello", max_tokens=100)
    assert result.text.endswith(SAYS)
    assert (result.finish_reason, result.usage.counted) == ("stop", True)
    assert result.usage.completion_tokens > len(SAYS)
    assert result.timings.ttft_s is not None


def test_messages_are_answered_with_the_thought_apart(model: LanguageModel) -> None:
    result = model.chat(HELLO)
    assert (result.text, result.reasoning) == (SAYS, "A greeting.")
    assert result.usage.reasoning_tokens > 0
    assert model.chat(HELLO, thinking=False).reasoning is None


def test_a_stream_has_the_pieces_of_its_result(model: LanguageModel) -> None:
    with model.stream_chat(HELLO) as stream:
        pieces = list(stream)
    assert "".join(piece.text for piece in pieces) == stream.result.text == SAYS
    assert "".join(piece.reasoning for piece in pieces) == stream.result.reasoning
    assert len(pieces) > 5
    with pytest.raises(StopIteration):
        next(stream)


def test_an_answer_ends_at_its_limit_and_at_a_stop(model: LanguageModel) -> None:
    cut = model.generate("Hello", max_tokens=3)
    assert (cut.finish_reason, cut.usage.completion_tokens) == ("length", 3)
    assert model.chat(HELLO, thinking=False, stop=[" to"]).text == "Good day"


def test_leaving_early_cancels(model: LanguageModel) -> None:
    with model.stream_chat(HELLO) as stream:
        first = next(stream)
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text + (stream.result.reasoning or "") == first.text + first.reasoning
    assert model.chat(HELLO).text == SAYS


def test_a_cancel_ends_the_pieces(model: LanguageModel) -> None:
    with model.stream_chat(HELLO) as stream:
        next(stream)
        stream.cancel()
        rest = list(stream)
    assert stream.result.finish_reason == "cancelled"
    assert len(rest) < len(SAYS)


def test_likelihoods_come_where_they_are_asked_for(model: LanguageModel) -> None:
    result = model.chat(HELLO, thinking=False, max_tokens=4, logprobs=True, n_best=2)
    assert result.logprobs is not None
    assert [each.text for each in result.logprobs] == list("Good")
    assert all(len(each.best) == 2 and each.logprob <= 0 for each in result.logprobs)


def test_a_conversation_remembers(model: LanguageModel) -> None:
    chat = model.chat(system="Be brief.", max_tokens=200)
    chat.send("Hello")
    second = chat.send("Again")
    assert (chat.turns, second.text) == (2, SAYS)
    assert [each["role"] for each in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[2]["reasoning_content"] == "A greeting."
    other = chat.fork()
    chat.undo()
    assert (chat.turns, other.turns) == (1, 2)
    with pytest.raises(edgepack.UsageError, match="There is 1 turn to undo, not 2"):
        chat.undo(2)
    with other.stream("And now?") as stream:
        assert "".join(piece.text for piece in stream) == SAYS
    assert other.turns == 3


def test_an_event_loop_goes_on(model: LanguageModel) -> None:
    async def asking() -> None:
        first, second = await asyncio.gather(model.agenerate("Hello", max_tokens=60), model.achat(HELLO))
        assert first.text.endswith(SAYS)
        assert second.text == SAYS
        async with model.astream_chat(HELLO) as stream:
            assert "".join([piece.text async for piece in stream]) == SAYS
        assert stream.result.finish_reason == "stop"
        async with model.astream("Hello", max_tokens=60) as stream:
            await anext(stream)
        assert stream.result.finish_reason == "cancelled"
        assert (await model.chat().asend("Hello")).text == SAYS

    asyncio.run(asking())


def test_a_cancelled_task_leaves_the_model_as_it_was(model: LanguageModel) -> None:
    async def asking() -> None:
        begun = asyncio.Event()

        async def reading() -> None:
            async with model.astream_chat(HELLO) as stream:
                async for _ in stream:
                    begun.set()
                    await asyncio.Event().wait()

        task = asyncio.create_task(reading())
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert (await model.achat(HELLO)).text == SAYS

    asyncio.run(asking())


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"max_tokenz": 3}, edgepack.UnknownOptionError, "Did you mean max_tokens"),
        ({"temperature": -1}, edgepack.UsageError, "temperature is -1"),
        ({"max_tokens": 0}, edgepack.UsageError, "max_tokens is 0"),
        ({"stop": [""]}, edgepack.UsageError, r"stop\[0\]"),
        ({"n_best": 99}, edgepack.UsageError, "n_best is 99"),
        ({"reuse": "some"}, edgepack.UsageError, "reuse is 'some'"),
        ({"on_overflow": "cut"}, edgepack.UsageError, "on_overflow is 'cut'"),
        ({"thinking": 1}, edgepack.UsageError, "thinking is 1"),
        ({"thinking_tokens": -1}, edgepack.UsageError, "thinking_tokens is -1"),
        ({"tools": []}, edgepack.SchemaError, "tools is empty"),
        ({"json_schema": "{"}, edgepack.SchemaError, "json_schema is not JSON"),
    ],
)
def test_what_makes_no_sense_is_refused_before_the_block(
    model: LanguageModel, options: dict[str, object], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        model.stream_chat(HELLO, **options)  # type: ignore[arg-type]


def test_messages_are_checked(model: LanguageModel) -> None:
    with pytest.raises(edgepack.UsageError, match=r"messages\[0\].role is missing"):
        model.stream_chat([{"content": "Hello"}])
    with pytest.raises(edgepack.UsageError, match="continue_final=True"):
        model.stream_chat([*HELLO, {"role": "assistant", "content": "Good"}])
    with pytest.raises(edgepack.UsageError, match="half a surrogate pair"):
        model.stream_chat([{"role": "user", "content": "\ud800"}])
    with pytest.raises(edgepack.UsageError, match="system was given beside messages"):
        model.chat(HELLO, system="x")  # type: ignore[call-overload]


def test_a_prompt_that_is_too_long_is_one_error(model: LanguageModel) -> None:
    with pytest.raises(edgepack.PromptTooLongError, match="tokens, the context"):
        model.generate("word " * 9000)


def test_a_stream_is_read_inside_its_block_and_once(model: LanguageModel) -> None:
    stream = model.stream("Hello", max_tokens=3)
    with pytest.raises(edgepack.UsageError, match="outside of a with block"):
        next(stream)
    with pytest.raises(edgepack.UsageError, match="has no result"):
        _ = stream.result
    with stream:
        list(stream)
    with pytest.raises(edgepack.UsageError, match="entered twice"), stream:
        pass


def test_after_its_end_it_answers_no_more(model: LanguageModel) -> None:
    model.close()
    model.close()
    with pytest.raises(edgepack.EngineError):
        model.generate("Hello")


def test_what_only_a_model_here_knows_is_none(served: Serving) -> None:
    with edgepack.connect(served.url) as model:
        result = model.chat(HELLO)
        assert (result.sampling, result.repro, result.timings.load_s) == (None, None, None)
        assert result.to_dict()["repro"] is None
        assert isinstance(model.setup, edgepack.Served)
        assert model.setup.to_dict() == {
            "url": served.url, "server": "edgepack", "version": "0.1.0", "model": "fake", "context": model.context,
        }  # fmt: skip


def test_the_server_stops_when_its_reader_leaves(served: Serving) -> None:
    with edgepack.connect(served.url) as model:
        for _ in range(20):
            with model.stream_chat(HELLO) as stream:
                next(stream)
        assert model.chat(HELLO).text == SAYS  # one request at a time: none of the twenty still runs
