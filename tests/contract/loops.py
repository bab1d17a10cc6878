"""Event loops and threads: never blocked, served in order, and no deadlock."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from threading import Barrier, BrokenBarrierError, Event, Thread, get_ident
from typing import Any

import pytest

import edgepack
from contract.case import LONG, Case, WatchedRuntime, facts, holds_what_it_should
from contract.registry import promise
from contract.text import PROMPTS, QUESTION
from edgepack import loading
from edgepack.decoding import desk
from edgepack.decoding.desk import Desk
from edgepack.decoding.stream import AsyncStream, Stream
from edgepack.decoding.turn import Turn
from edgepack.errors import UsageError
from edgepack.model import Model


@promise
def async_gives_what_sync_gives(case: Case) -> None:
    model = case.model
    options: dict[str, Any] = {"max_tokens": 8, "temperature": 1.5, "seed": 3}
    plain = facts(model.generate(PROMPTS[1], **options))
    talk = facts(model.chat(QUESTION, **options))

    async def ask() -> None:
        assert facts(await model.agenerate(PROMPTS[1], **options)) == plain
        assert facts(await model.achat(QUESTION, **options)) == talk
        async with model.astream(PROMPTS[1], **options) as stream:
            pieces = [piece async for piece in stream]
        assert facts(stream.result) == plain
        assert "".join(piece.text for piece in pieces) == plain["text"]
        assert [token for piece in pieces for token in piece.token_ids] == plain["token_ids"]
        async with model.astream_chat(QUESTION, **options) as stream:
            assert "".join([piece.text async for piece in stream]) == talk["text"]
        with pytest.raises(UsageError, match="max_tokens"):
            await model.agenerate("x", max_tokens=0)

    case.runs(ask())


@async_gives_what_sync_gives.broken_by
def an_async_stream_that_loses_its_first_piece(patch: pytest.MonkeyPatch) -> None:
    real = AsyncStream.__aenter__

    async def enter(self: AsyncStream) -> AsyncStream:
        await real(self)
        await anext(self)
        return self

    patch.setattr(AsyncStream, "__aenter__", enter)


@async_gives_what_sync_gives.broken_by
def an_async_call_that_forgets_its_options(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Model, "astream", lambda self, text, **options: self._later(lambda: self.stream(text)))


@promise
def an_event_loop_goes_on_while_the_engine_works(case: Case) -> None:
    missed: list[str] = []

    def beat(loop: asyncio.AbstractEventLoop, where: str) -> None:
        """On the engine's thread: ask the loop for a sign of life, before the engine goes on."""
        if missed:
            return
        alive = Event()
        loop.call_soon_threadsafe(alive.set)
        if not alive.wait(min(case.guard_s, 10)):
            missed.append(where)

    async def live() -> None:
        loop = asyncio.get_running_loop()
        runtime = WatchedRuntime(case.engine)
        runtime.opening = lambda: beat(loop, "load")
        model = await edgepack.aload(
            case.bundle, case.engine, context=256, variant=case.variant, threads=1, runtimes={case.engine: runtime}
        )
        async with model:
            runtime.session.before = lambda number: beat(loop, f"forward {number}")
            await model.agenerate(LONG * 6, max_tokens=3)  # two steps of prefill
            await model.chat().asend("How many apples?", max_tokens=2)
            assert len(runtime.session.calls) > 4

    case.runs(live())
    assert not missed


@an_event_loop_goes_on_while_the_engine_works.broken_by
def a_loop_that_waits_for_the_engine(patch: pytest.MonkeyPatch) -> None:
    async def wait(self: Stream) -> None:
        self._wait()

    patch.setattr(Stream, "_await", wait)


@an_event_loop_goes_on_while_the_engine_works.broken_by
def a_load_on_the_loops_thread(patch: pytest.MonkeyPatch) -> None:
    async def aload(*arguments: Any, **options: Any) -> Model:
        return loading.load(*arguments, **options)

    patch.setattr(edgepack, "aload", aload)


@promise
def tasks_are_served_in_the_order_in_which_they_come(case: Case) -> None:
    prompts = [*PROMPTS, LONG]
    alone = [case.model.generate(prompt, max_tokens=4).text for prompt in prompts]
    served: list[int] = []

    async def ask(number: int) -> str:
        result = await case.model.agenerate(prompts[number], max_tokens=4)
        served.append(number)
        return result.text

    async def together() -> list[str]:
        loop = asyncio.get_running_loop()
        inside, go_on = asyncio.Event(), Event()

        def wait(number: int) -> None:
            if number == 0:
                loop.call_soon_threadsafe(inside.set)
                go_on.wait(case.guard_s)

        case.watch.reset()
        case.watch.before = wait
        first = asyncio.create_task(case.model.agenerate("Once", max_tokens=12))
        await inside.wait()
        tasks = [asyncio.create_task(ask(number)) for number in range(len(prompts))]
        await asyncio.sleep(0)  # each has asked for its turn when the first goes on
        go_on.set()
        await first
        return await asyncio.gather(*tasks)

    assert case.runs(together()) == alone
    assert served == list(range(len(prompts)))


@tasks_are_served_in_the_order_in_which_they_come.broken_by
def a_queue_that_serves_the_last_first(patch: pytest.MonkeyPatch) -> None:
    class Stack(deque[Turn]):
        def popleft(self) -> Turn:
            return self.pop()

    patch.setattr(desk, "deque", Stack)


@promise
def threads_take_turns(case: Case) -> None:
    model, prompts = case.model, [*PROMPTS, LONG]
    alone = [model.generate(prompt, max_tokens=4).text for prompt in prompts]
    inside = Barrier(2)
    case.watch.reset()
    case.watch.before = lambda number: meet(inside, case) if number == 0 else None
    said: dict[str, str] = {}

    def ask(prompt: str) -> None:
        with model.stream(prompt, max_tokens=4) as stream:
            said[prompt] = "".join(piece.text for piece in stream)

    threads = [Thread(target=ask, args=(prompt,), daemon=True) for prompt in prompts]
    for thread in threads:
        thread.start()
    meet(inside, case)  # the first is in the engine, and the others wait or are about to
    for thread in threads:
        thread.join(case.guard_s)
    assert [said.get(prompt) for prompt in prompts] == alone
    assert holds_what_it_should(model)


def meet(barrier: Barrier, case: Case) -> None:
    with suppress(BrokenBarrierError):
        barrier.wait(case.guard_s)


@threads_take_turns.broken_by
def a_desk_that_serves_all_at_once(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "has_ended", property(lambda self: True))


@promise
def who_gives_up_waiting_delays_nobody(case: Case) -> None:
    alone = case.model.generate(PROMPTS[2], max_tokens=4).text

    async def together() -> str:
        async with case.model.astream(PROMPTS[1], max_tokens=6) as stream:
            await anext(stream)
            waiting = asyncio.create_task(case.model.agenerate(PROMPTS[0], max_tokens=4))
            behind = asyncio.create_task(case.model.agenerate(PROMPTS[2], max_tokens=4))
            while len(case.model._desk._waiting) < 2:
                await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        return (await behind).text

    assert case.runs(together()) == alone


@who_gives_up_waiting_delays_nobody.broken_by
def a_queue_that_is_lost_with_one_who_leaves_it(patch: pytest.MonkeyPatch) -> None:
    real = Desk.leave

    def leave(self: Desk, turn: Turn) -> None:
        self._waiting.clear()
        real(self, turn)

    patch.setattr(Desk, "leave", leave)


@promise
def a_stream_inside_a_stream_is_refused_and_hangs_nothing(case: Case) -> None:
    model = case.model

    def nested() -> None:
        with model.stream(PROMPTS[1], max_tokens=6) as stream:
            first = next(stream).text
            for ask in (lambda: model.generate("x"), lambda: model.logits([5]), lambda: model.chat().send("x")):
                with pytest.raises(UsageError, match="still open") as caught:
                    ask()
                assert caught.value.hint
            rest = "".join(piece.text for piece in stream)
            assert first + rest == model.generate(PROMPTS[1], max_tokens=6).text

    async def nested_task() -> None:
        async with model.astream(PROMPTS[1], max_tokens=6) as stream:
            await anext(stream)
            with pytest.raises(UsageError, match="still open"):
                await model.agenerate("x")
            with pytest.raises(UsageError, match="still open"):
                model.generate("x")

    case.ends(nested)
    case.runs(nested_task())


@a_stream_inside_a_stream_is_refused_and_hangs_nothing.broken_by
def a_desk_that_waits_for_itself(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(desk, "_calls_us", lambda frame: False)


@promise
def a_pool_of_threads_reads_streams_in_turn(case: Case) -> None:
    """A web framework reads a generator with whichever thread is free, also with one that began another's."""
    model, alone = case.model, case.model.generate(PROMPTS[1], max_tokens=6).text

    def pieces() -> Iterator[str]:
        with model.stream(PROMPTS[1], max_tokens=6) as stream:
            for piece in stream:
                yield piece.text

    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second = pieces(), pieces()
        begun = one.submit(next, first).result(case.guard_s)
        waiting = one.submit("".join, second)
        assert begun + other.submit("".join, first).result(case.guard_s) == alone
        assert waiting.result(case.guard_s) == alone
    assert holds_what_it_should(model)


@a_pool_of_threads_reads_streams_in_turn.broken_by
def a_desk_that_takes_a_thread_for_a_request(patch: pytest.MonkeyPatch) -> None:
    threads: dict[object, int] = {}
    real = Desk.enter

    def enter(self: Desk, holder: Any) -> Turn:
        turn = real(self, holder)
        threads[holder._caller] = get_ident()
        return turn

    patch.setattr(Desk, "enter", enter)
    patch.setattr(desk, "_calls_us", lambda frame: threads.get(frame) == get_ident())


@promise
def a_stream_that_was_dropped_keeps_nobody_waiting(case: Case) -> None:
    model, alone = case.model, case.model.generate(PROMPTS[2], max_tokens=4).text
    stream = model.stream(PROMPTS[1], max_tokens=60)
    next(stream.__enter__())
    del stream
    assert case.ends(lambda: model.generate(PROMPTS[2], max_tokens=4).text) == alone
    assert holds_what_it_should(model)


@a_stream_that_was_dropped_keeps_nobody_waiting.broken_by
def a_desk_that_waits_for_who_is_gone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "has_ended", property(lambda self: self.over))
