"""Prompts that do not fit: refused, cut in the middle, or rolled off, and never in silence."""

from __future__ import annotations

from itertools import accumulate
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import edgepack
from edgepack import fake
from edgepack.decoding.results import Result
from edgepack.errors import BundleError, PromptTooLongError, UsageError
from edgepack.text.prompts import OnOverflow
from edgepack.text.shortening import fewest

POLICIES: tuple[OnOverflow, ...] = ("truncate_middle", "rolling")

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
        held = model._desk.cache.tokens
    marks = {256: ">", 257: "<"}
    assert "".join(marks.get(token) or chr(token) for token in held).startswith("<system\nSYSTEM>\nx")


def test_a_rolling_context_is_evaluated_anew() -> None:
    """After rolling, the cache is what a prefill of the tokens that are left would make it."""
    with fake.model(says=(), context=16) as model:
        result = model.generate("abcdefgh", on_overflow="rolling", max_tokens=40)
        held = list(model._desk.cache.tokens)
        last = result.token_ids[-1]
        expected = int(model.logits(held)[-1].argmax())
    assert held[-1] == result.token_ids[-2]
    assert expected == last


def one_by_one(model: edgepack.Model, messages: list[dict[str, str]], room: int) -> list[int]:
    """The policy as it is told: leave out a turn, look again, and cut the middle of what is left."""
    messages = list(messages)
    system = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    while True:
        ids = model.tokenizer.encode(model.template.render(messages), bos=False, special=True)
        users = [i for i, message in enumerate(messages) if message["role"] == "user" and i >= system]
        if len(ids) <= room or len(users) < 2:
            break
        del messages[users[0] : users[1]]
    while len(ids) > room:
        longest = max(messages, key=lambda message: len(message["content"]))
        held, surplus = longest["content"], len(ids) - room
        left = len(held) - surplus
        longest["content"] = held[: left // 2] + held[left // 2 + surplus :]
        ids = model.tokenizer.encode(model.template.render(messages), bos=False, special=True)
    return ids


SAID = st.text("ab", max_size=3) | st.integers(0, 400).map("x".__mul__)
TALK = st.lists(
    st.builds(lambda role, text: {"role": role, "content": text}, st.sampled_from(["user", "assistant", "tool"]), SAID),
    max_size=24,
)


def test_as_few_turns_go_as_when_each_is_tried() -> None:
    @settings(max_examples=100, deadline=None)
    @given(begun=st.lists(st.just(SYSTEM), max_size=2), talk=TALK, last=SAID, policy=st.sampled_from(POLICIES))
    def same(begun: list[dict[str, str]], talk: list[dict[str, str]], last: str, policy: OnOverflow) -> None:
        messages = [*begun, *talk, user(last)]
        whole = model.tokenizer.encode(model.template.render(messages), bos=False, special=True)
        try:
            found = model.chat(messages, on_overflow=policy, max_tokens=10).repro.prompt_ids
        except PromptTooLongError:
            return
        room = 290 if len(whole) > 300 else 300
        assert list(found) == one_by_one(model, [dict(message) for message in messages], room)

    with fake.model(says="ok", context=300) as model:
        same()


@pytest.mark.parametrize("shape", ["even", "a long one first", "a long one last", "longer and longer", "random"])
@pytest.mark.parametrize("share", [0.001, 0.3, 0.99])
def test_a_long_history_is_rendered_a_few_times(shape: str, share: float) -> None:
    """Turns whose tokens are not in proportion to their letters are found as well, and in few tries."""
    turns, rng = 5000, Random(shape)
    tokens = {
        "even": [7] * turns,
        "a long one first": [10**6, *[7] * (turns - 1)],
        "a long one last": [*[7] * (turns - 1), 10**6],
        "longer and longer": list(range(turns)),
        "random": [rng.choice([1, 10, 10**4]) for _ in range(turns)],
    }[shape]
    messages = [{"role": "user", "content": "x" * rng.choice([1, 30, 900])} for _ in tokens]
    left = [*accumulate(reversed(tokens))][::-1]
    room, tries = int(left[0] * share), 0

    def count(gone: int) -> int:
        nonlocal tries
        tries += 1
        return left[gone]

    found = fewest(messages, range(turns), left[0], room, count)
    assert found == next((gone for gone in range(turns) if left[gone] <= room), turns - 1)
    assert tries <= 4 * 13


def test_a_template_that_prints_nothing_is_named() -> None:
    with fake.model(says="x", template="{{ messages[0].nothing }}") as model:
        for policy in (None, *POLICIES):
            with pytest.raises(BundleError, match="prints nothing for these messages"):
                model.chat([user("hi")], on_overflow=policy)
