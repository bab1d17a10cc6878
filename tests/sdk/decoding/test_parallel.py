"""Several requests at a time: each says what it says alone, none waits for another's prompt, and what they share is
evaluated once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from edgepack import Model, fake
from edgepack.decoding.cache import Cache
from edgepack.decoding.desk import Desk
from edgepack.decoding.seat import Ask, Seat
from edgepack.decoding.seating import choose, together
from edgepack.decoding.turn import Turn
from edgepack.errors import EngineError, UsageError
from edgepack.fake import FakeSession

PROMPTS = ["a", "bc" * 100, "def", "x" * 500, "y" * 129, "q", "z" * 40, "a" * 128]
LONG = 1_000_000
"""Tokens of a text that does not end before somebody ends it, on whatever machine."""


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[tuple[int, int]]]]:
    """Yield the steps of the desks made meanwhile: each a list of (sequence, tokens)."""
    steps: list[list[tuple[int, int]]] = []

    def evaluate(self: Desk, asked: list[tuple[Turn, Ask]]) -> None:
        steps.append([(turn.seat.number if turn.seat else -1, len(ask.tokens)) for turn, ask in asked])
        whole(self, asked)

    whole = Desk._evaluate
    with monkeypatch.context() as patch:
        patch.setattr(Desk, "_evaluate", evaluate)
        yield steps


def held_up(model: Model) -> Callable[[], None]:
    """Keep the engine's thread busy; return what frees it."""
    gate = threading.Event()
    model._desk.owner.submit(gate.wait)
    return gate.set


def at_once(model: Model, asks: list[Callable[[], str]]) -> list[str]:
    """Return the answers to requests that are all there before the engine looks."""
    free = held_up(model)
    with ThreadPoolExecutor(len(asks)) as pool:
        answers = [pool.submit(ask) for ask in asks]
        while len(model._desk._waiting) < len(asks):
            pass
        free()
        return [answer.result(60) for answer in answers]


@pytest.mark.parametrize("sequences", [2, 4, 8])
def test_each_says_what_it_says_alone(sequences: int) -> None:
    options = [{"temperature": 0.0 if i % 2 else 1.0, "seed": i, "max_tokens": 5 + 3 * i} for i in range(8)]
    with fake.model() as one, fake.model(sequences=sequences) as many:
        alone = [one.generate(prompt, **each).text for prompt, each in zip(PROMPTS, options, strict=True)]  # type: ignore[arg-type]
        asks = [lambda p=p, o=o: many.generate(p, **o).text for p, o in zip(PROMPTS, options, strict=True)]  # type: ignore[misc]
        assert at_once(many, asks) == alone
        again = [many.generate(prompt, **each) for prompt, each in zip(PROMPTS, options, strict=True)]  # type: ignore[arg-type]
        assert [result.text for result in again] == alone
        assert again[0].repro.setup.sequences == sequences


def test_answers_go_on_together_and_a_prompt_stalls_none_for_more_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    with watched(monkeypatch) as steps, fake.model(says="abcdefghij" * 4, sequences=3) as model:
        asks = [lambda p=p: model.generate(p, max_tokens=30).text for p in ("a", "b", "x" * 1000)]  # type: ignore[misc]
        assert at_once(model, asks) == ["abcdefghij" * 3] * 3
    longest = max(step[-1][1] for step in steps)
    assert longest == 128  # the prompt came in chunks
    answering = [step for step in steps if any(tokens == 1 for _, tokens in step)]
    assert sum(1 for step in steps if any(tokens > 1 for _, tokens in step)) >= 8
    assert sum(len(step) == 3 for step in answering) > 10  # and then all three in one step
    for step in steps:
        assert sum(tokens for _, tokens in step if tokens > 1) <= 128
        assert len({number for number, _ in step}) == len(step)


def test_short_prompts_share_a_step_and_long_ones_take_turns() -> None:
    turns = [Turn(lambda seat: None, served=served) for served in (3, 0, 2, 0)]
    asked = [(turn, Ask([0] * n)) for turn, n in zip(turns, (128, 20, 128, 30), strict=True)]
    assert [ask for _, ask in together(asked, 128)] == [asked[1][1], asked[3][1]]
    assert together([asked[0], asked[2]], 128) == [asked[2]]
    one = (Turn(lambda seat: None), Ask([7]))
    guessed = (Turn(lambda seat: None), Ask([7, 8, 9], every=True))
    assert together([one, guessed, asked[0]], 128) == [one, guessed, asked[0]]


def test_what_two_prompts_share_is_evaluated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    system = "You are a helpful machine. " * 20
    first = {"role": "system", "content": system}
    asks = [[first, {"role": "user", "content": each}] for each in ("one", "two", "six")]
    with watched(monkeypatch) as steps, fake.model(says="abc", sequences=4) as model:
        found = at_once(model, [lambda m=m: str(model.chat(m).usage.cached_tokens) for m in asks])  # type: ignore[misc]
        evaluated = sum(tokens for step in steps for _, tokens in step)
        assert sorted(int(each) > len(system) for each in found) == [False, True, True]
        assert evaluated < len(system) + 3 * 80
        before = sum(tokens for step in steps for _, tokens in step)
        assert model.chat([first, {"role": "user", "content": "later"}]).usage.cached_tokens > len(system)
        assert sum(tokens for step in steps for _, tokens in step) - before < 80


def test_conversations_keep_their_own_seats() -> None:
    with fake.model(says="abc", sequences=3) as model:
        chats = [model.chat(system=f"You are number {i}. " * 8) for i in range(3)]
        for round_ in range(3):
            for chat in chats:
                result = chat.send("Tell me more.")
                new = result.usage.prompt_tokens - result.usage.cached_tokens
                assert round_ == 0 or new < 60


def held(number: int, tokens: list[int]) -> Seat:
    """Return a seat whose cache has these tokens."""
    seat = object.__new__(Seat)
    seat.number, seat.cache = number, Cache()
    seat.cache.append(tokens)
    return seat


def test_a_seat_that_holds_a_prompts_past_goes_before_an_empty_one() -> None:
    past, other, empty = held(0, [1, 2, 3, 4]), held(1, [1, 2, 9, 9, 9, 9]), held(2, [])
    assert choose([empty, other, past], [], [1, 2, 3, 4, 5]) is past
    assert choose([empty, other, past], [], [7]) is empty
    assert choose([other, past], [], [7]) is other  # the longest unused


def test_who_comes_sits_near_those_who_are_there() -> None:
    seats = [held(number, []) for number in range(8)]
    assert choose([seats[1], seats[7], seats[0]], [seats[6]], [7]) is seats[7]
    assert choose([seats[1], seats[0]], [seats[6]], [7]) is seats[1]
    past = held(0, [1, 2, 3, 4])  # it is copied
    assert choose([past, seats[5]], [seats[6]], [1, 2, 3, 4, 5]) is seats[5]
    assert choose([past, seats[5]], [seats[2]], [1, 2, 3, 4, 5]) is past


def test_those_who_run_lie_close_together() -> None:
    seats = [held(number, [number] * 9) for number in range(8)]
    free = [seats[each] for each in (7, 0, 5, 3)]
    assert choose(free, [seats[2], seats[4]], [9]) is seats[3]
    assert choose(free[:3], [seats[3], seats[4]], [9]) is seats[5]
    assert choose([seats[5], seats[0]], [seats[2], seats[3]], [9]) is seats[5]  # the longest unused
    assert choose([seats[3], seats[1]], [seats[0], seats[7]], [9]) is seats[1]


def test_a_past_in_the_way_moves_to_the_seat_that_was_unused_for_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    pasts = [letter * 200 for letter in "abc"]
    with fake.model(sequences=4, context=LONG) as model:
        for past in pasts:
            model.generate(past, max_tokens=1)
        with model.stream(pasts[1] + "x", max_tokens=LONG - 300) as stream, watched(monkeypatch) as steps:
            next(stream)
            model.generate("y" * 200, max_tokens=1)
            assert any(len(step) == 2 and abs(step[0][0] - step[1][0]) == 1 for step in steps)
            found = [model.generate(past + "z", max_tokens=1).usage for past in (pasts[0], pasts[2])]
        assert [each.prompt_tokens - each.cached_tokens for each in found] == [1, 1]


def test_a_stream_runs_ahead_and_a_slow_reader_holds_nobody_up() -> None:
    with fake.model(says="abcdefgh", sequences=2) as model:
        with model.stream("x") as slow:
            assert next(slow).text == "a"
            with model.stream("y") as nested:  # no wait for itself: it has a sequence of its own
                assert "".join(chunk.text for chunk in nested) == "abcdefgh"
            assert [model.generate("z").text for _ in range(4)] == ["abcdefgh"] * 4
            assert model._desk.owner.call(lambda: slow._done)
            assert "".join(chunk.text for chunk in slow) == "bcdefgh"
        assert slow.result.text == "abcdefgh"


def test_who_waits_is_served_when_one_ends() -> None:
    with fake.model(says="abc", sequences=2) as model:
        assert at_once(model, [lambda: model.generate("x").text] * 9) == ["abc"] * 9

        async def tasks() -> list[str]:
            return [result.text for result in await asyncio.gather(*(model.agenerate("y") for _ in range(9)))]

        assert asyncio.run(tasks()) == ["abc"] * 9


def test_a_cancel_ends_one_and_none_of_the_others() -> None:
    with fake.model(sequences=3, context=LONG) as model, model.stream("x", max_tokens=LONG - 100) as stream:
        other = ThreadPoolExecutor(1).submit(lambda: model.generate("y", max_tokens=200))
        next(stream)
        stream.cancel()
        assert sum(1 for _ in stream) < LONG - 101
        assert stream.result.finish_reason == "cancelled"
        assert other.result(60).finish_reason == "length"


def test_leaving_early_frees_the_seat() -> None:
    with fake.model(sequences=2, context=LONG) as model:
        for _ in range(5):
            with model.stream("x", max_tokens=LONG - 100) as stream:
                next(stream)
            assert stream.result.finish_reason == "cancelled"
        assert model.generate("x", max_tokens=2).finish_reason == "length"

    async def leave() -> None:
        with fake.model(sequences=2, context=LONG) as model:
            async with model.astream("x", max_tokens=LONG - 100) as stream:
                await anext(stream)
            before = model._desk._round
            task = asyncio.create_task(model.agenerate("x", max_tokens=LONG - 100))
            while model._desk._round < before + 3:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert (await model.agenerate("y", max_tokens=2)).finish_reason == "length"

    asyncio.run(leave())


def test_a_failure_is_told_to_all_that_it_meets() -> None:
    def ask() -> str:
        with pytest.raises(EngineError) as caught:
            model.generate("x", max_tokens=50)
        return caught.value.message

    with fake.model(sequences=3, fail_at=4) as model:
        told = at_once(model, [ask] * 5)
        assert sum("as planned" in each for each in told) == 5
        with pytest.raises(EngineError, match="failed earlier"):
            model.generate("x")


def test_a_close_ends_what_runs_and_refuses_what_waits() -> None:
    inside = threading.Event()

    def before_step(session: FakeSession) -> None:
        inside.set()
        assert session._cancelled.wait(60)

    def ask() -> str:
        try:
            return model.generate("x", max_tokens=50).finish_reason
        except EngineError as error:
            return error.message

    model = fake.model(says="ab" * 100, sequences=2, before_step=before_step)
    free = held_up(model)
    with ThreadPoolExecutor(4) as pool:
        told = [pool.submit(ask) for _ in range(4)]
        while len(model._desk._waiting) < 4:
            pass
        free()
        assert inside.wait(60)
        model.close()
        found = sorted(each.result(60) for each in told)
    assert found == ["The model is closed."] * 2 + ["cancelled"] * 2


def test_logits_between_which_others_run_are_the_same() -> None:
    ids = list(range(200))
    with fake.model() as one, fake.model(sequences=2) as model:
        want = one.logits(ids)
        with model.stream("x", max_tokens=3000) as stream:
            next(stream)
            rows = [row for part in model.evaluate(ids, 64) for row in part]
        assert len(rows) == 200
        assert all((a == b).all() for a, b in zip(rows[-8:], want[-8:], strict=True))


def test_several_sequences_and_what_serves_one_text_exclude_each_other() -> None:
    with fake.model(says="abc", sequences=2) as model:
        chat = model.chat()
        chat.send("x")
        with model.stream("y") as stream:
            next(stream)
            assert model._desk.call(lambda: model._desk.seat.snapshot(1)) == b""
            assert "".join(chunk.text for chunk in stream) == "bc"
    with pytest.raises(UsageError):
        fake.model(sequences=0)
