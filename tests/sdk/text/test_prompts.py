"""Prompts that do not fit: refused, cut in the middle, or rolled off, and never in silence."""

from __future__ import annotations

import pytest

from edgepack import fake
from edgepack.decoding.results import Result
from edgepack.errors import PromptTooLongError, UsageError

SYSTEM = {"role": "system", "content": "SYSTEM"}


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def seen(result: Result) -> str:
    """The prompt as text, byte by byte, with the fake's special tokens as < and >."""
    marks = {256: ">", 257: "<"}
    return "".join(marks.get(token) or chr(token) for token in result.repro.prompt_ids)


def test_the_error_names_the_prompt_the_limit_and_what_to_do() -> None:
    with fake.model(says="a", context=8) as model:
        for policy in ("error", None):
            with pytest.raises(PromptTooLongError, match="has 9 tokens, the context 8") as caught:
                model.generate("123456789", on_overflow=policy)  # type: ignore[arg-type]
        assert "context=9 or more" in (caught.value.hint or "")
        assert "truncate_middle" in (caught.value.hint or "")
        with pytest.raises(UsageError, match="on_overflow is 'cut'"):
            model.generate("x", on_overflow="cut")  # type: ignore[arg-type]


def test_a_text_loses_its_middle() -> None:
    with fake.model(says="ok", context=12) as model:
        result = model.generate("abcdefghijklmnopqrstuvwxyz", on_overflow="truncate_middle", max_tokens=2)
        whole = model.generate("abcdefghijkl", on_overflow="truncate_middle", max_tokens=2)
    assert seen(result) == "abcdevwxyz"
    assert (result.usage.prompt_tokens, result.usage.truncated_tokens, result.text) == (10, 16, "ok")
    assert (seen(whole), whole.usage.truncated_tokens, whole.text) == ("abcdefghijkl", 0, "o")


def test_an_answer_gets_at_most_half_of_the_context() -> None:
    with fake.model(says="ok", context=12) as model:
        result = model.generate("x" * 30, on_overflow="truncate_middle", max_tokens=1000)
    assert result.usage.prompt_tokens == 6


def test_a_conversation_loses_its_oldest_turns_and_keeps_the_system_prompt() -> None:
    messages = [SYSTEM, user("one"), assistant("1"), user("two"), assistant("2"), user("three")]
    with fake.model(says="ok", context=89) as model:
        result = model.chat(messages, on_overflow="truncate_middle", max_tokens=4)
        untouched = model.chat(messages[3:], on_overflow="truncate_middle", max_tokens=4)
    assert seen(result) == "<system\nSYSTEM>\n<user\ntwo>\n<assistant\n2>\n<user\nthree>\n<assistant\n"
    assert result.usage.truncated_tokens == len("<user\none>\n<assistant\n1>\n")
    assert untouched.usage.truncated_tokens == 0


def test_the_longest_message_loses_its_middle_when_turns_are_not_enough() -> None:
    with fake.model(says="ok", context=60) as model:
        result = model.chat(
            [user("old"), assistant("1"), user("A" * 50 + "B" * 50)], on_overflow="truncate_middle", max_tokens=10
        )
    prompt = seen(result)
    assert prompt.startswith("<user\nAAA")
    assert prompt.endswith("BBB>\n<assistant\n")
    assert result.usage.prompt_tokens == 50
    whole = len("<user\nold>\n<assistant\n1>\n<user\n" + "x" * 100 + ">\n<assistant\n")
    assert result.usage.truncated_tokens == whole - 50


def test_what_cannot_be_shortened_is_refused() -> None:
    with fake.model(says="ok", context=16) as model, pytest.raises(PromptTooLongError) as caught:
        model.chat([user("hello")], on_overflow="truncate_middle")
    assert "on_overflow" not in str(caught.value)


def test_a_rolling_answer_goes_on_past_the_context() -> None:
    """The noise of the fake ends neither: both answers have all their tokens, in a context of 24."""
    with fake.model(says=list(b"x" * 400), context=24) as model:
        text = model.generate("abcdefgh", on_overflow="rolling", max_tokens=100)
        stopped = model.generate("abcdefgh", max_tokens=100)
    assert (text.usage.completion_tokens, text.finish_reason) == (100, "length")
    assert text.usage.truncated_tokens >= 8 + 100 - 24
    assert stopped.usage.completion_tokens == 24 - 8 + 1


def test_a_text_that_cannot_fit_is_not_tokenised(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake.model(says=(), context=16) as model:
        with pytest.raises(PromptTooLongError, match=r"has 17 tokens, the context 16"):
            model.generate("a" * 17)
        monkeypatch.setattr(model.tokenizer, "encode", lambda text, **options: pytest.fail("it was tokenised"))
        for ask in (model.generate, lambda text: model.chat([user(text)])):
            with pytest.raises(PromptTooLongError, match=r"has at least \d+ tokens, the context 16"):
                ask("a" * 10_000)


def test_a_rolling_context_keeps_the_system_prompt() -> None:
    with fake.model(says=list(b"x" * 400), context=80) as model:
        model.chat([SYSTEM, user("hi")], on_overflow="rolling", max_tokens=200)
        held = model.desk.cache.tokens
    marks = {256: ">", 257: "<"}
    assert "".join(marks.get(token) or chr(token) for token in held).startswith("<system\nSYSTEM>\nx")


def test_a_rolling_context_is_evaluated_anew() -> None:
    """After rolling, the cache is what a prefill of the tokens that are left would make it."""
    with fake.model(says=(), context=16) as model:
        result = model.generate("abcdefgh", on_overflow="rolling", max_tokens=40)
        held = list(model.desk.cache.tokens)
        last = result.token_ids[-1]
        expected = int(model.logits(held)[-1].argmax())
    assert held[-1] == result.token_ids[-2]
    assert expected == last
