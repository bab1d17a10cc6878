"""The owner's thread and the queue before it: order, interruption, failure, and the end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from edgepack import Model, fake
from edgepack.decoding import desk
from edgepack.decoding.owner import Owner
from edgepack.errors import EngineError, UsageError
from edgepack.fake import FakeSession


def test_work_is_done_in_order_on_one_other_thread() -> None:
    owner = Owner("test")
    seen: list[tuple[int, int]] = []
    futures = [owner.submit(lambda i=i: seen.append((i, threading.get_ident()))) for i in range(20)]  # type: ignore[misc]
    for future in futures:
        future.result()
    assert [i for i, _ in seen] == list(range(20))
    assert {thread for _, thread in seen}.isdisjoint({threading.get_ident()})
    assert len({thread for _, thread in seen}) == 1
    assert owner.call(lambda: owner.call(lambda: 7)) == 7  # from its own thread there is nothing to wait for
    owner.stop(timeout_s=5)


def test_an_error_is_the_callers() -> None:
    owner = Owner("test")
    with pytest.raises(ZeroDivisionError):
        owner.call(lambda: 1 / 0)
    assert owner.call(lambda: 1) == 1
    owner.stop(timeout_s=5)


def test_ctrl_c_stops_the_engine_and_comes_through() -> None:
    """The interrupt arrives while the engine is inside its first step, which ends only because it is cancelled."""
    inside, steps = threading.Event(), []

    def before_step(session: FakeSession) -> None:
        steps.append(session.length)
        if len(steps) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            assert session._cancelled.wait(30)
            inside.set()

    with fake.model(says="abc", before_step=before_step) as model:
        with pytest.raises(KeyboardInterrupt):
            model.generate("x" * 1000)
        assert inside.is_set()
        assert len(steps) == 1
        assert model.generate("x").text == "abc"


def test_a_nested_stream_is_refused_and_others_wait_their_turn() -> None:
    order: list[str] = []
    with fake.model(says="abc") as model:
        with model.stream("x") as stream:
            with pytest.raises(UsageError, match="still open"):
                model.generate("y")
            thread = threading.Thread(target=lambda: order.append(model.generate("z").text))
            thread.start()
            while not model._desk._waiting:
                pass
            order.extend(chunk.text for chunk in stream)
        thread.join()
    assert order == ["a", "b", "c", "abc"]


def said_by(answer: Callable[[], str]) -> list[str]:
    """Return what another thread is told, nothing where it waits for ever."""
    said: list[str] = []
    thread = threading.Thread(target=lambda: said.append(answer()), daemon=True)
    thread.start()
    thread.join(20)
    return said


def pieces(model: Model) -> Iterator[str]:
    """What a web framework reads, each piece on whichever thread is free."""
    with model.stream("x") as stream:
        for chunk in stream:
            yield chunk.text


def test_a_thread_that_began_a_stream_waits_like_any_other() -> None:
    with fake.model(says="abc") as model, ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second = pieces(model), pieces(model)
        assert one.submit(next, first).result() == "a"
        waiting = one.submit(lambda: "".join(second))
        assert other.submit(lambda: "".join(first)).result() == "bc"
        assert waiting.result() == "abc"


def test_a_request_within_a_generator_that_has_the_model_is_refused() -> None:
    def nested() -> Iterator[str]:
        with model.stream("x") as stream:
            for chunk in stream:
                with pytest.raises(UsageError, match="still open"):
                    model.generate("y")
                yield chunk.text

    with fake.model(says="abc") as model, ThreadPoolExecutor(3) as pool:
        answer = nested()
        assert [pool.submit(next, answer, "").result() for _ in range(4)] == ["a", "b", "c", ""]


def test_a_stream_that_nobody_has_any_more_frees_the_model() -> None:
    with fake.model(says="abc", context=64) as model:
        stream = model.stream("x", max_tokens=30)
        next(stream.__enter__())
        forwards = model._desk.owner.call(lambda: len(model._desk.cache.tokens))
        del stream
        assert said_by(lambda: model.generate("x").text) == ["abc"]
        assert forwards < 4

        async def dropped() -> None:
            async def read() -> AsyncIterator[str]:
                async with model.astream("x") as stream:
                    async for chunk in stream:
                        yield chunk.text

            answer = read()
            await anext(answer)
            del answer
            gc.collect()
            assert (await model.agenerate("x")).text == "abc"

        asyncio.run(dropped())


def test_a_stream_that_nobody_reads_keeps_nobody_waiting(impatient: None) -> None:
    """One thread reads two answers in turn: neither can wait for the other's end, and both are whole."""
    with fake.model(says="abc") as model:
        first, second = pieces(model), pieces(model)
        assert list(zip(first, second, strict=True)) == [("a", "a"), ("b", "b"), ("c", "c")]
        with model.stream("x") as stream:
            assert next(stream).text == "a"
            assert said_by(lambda: model.generate("y").text) == ["abc"]
        assert (stream.result.text, stream.result.finish_reason, stream.result.stop) == ("a", "cancelled", None)
        with ThreadPoolExecutor(1) as pool:  # its one thread waits for the stream that it should read
            answers = [pieces(model) for _ in range(3)]
            begun = [pool.submit(next, answer) for answer in answers]
            ends = [pool.submit("".join, answer) for answer in answers]
            assert [future.result(20) for future in (*begun, *ends)] == ["a"] * 3 + ["bc"] * 3


def test_an_error_ahead_comes_to_who_reads(impatient: None) -> None:
    with fake.model(says="abc", fail_at=3) as model:
        with pytest.raises(EngineError, match="as planned"), model.stream("x") as stream:
            assert next(stream).text == "a"
            with pytest.raises(EngineError, match="failed earlier"):
                raise said_by(lambda: errors_of(lambda: model.generate("y")))[0]  # type: ignore[misc]
            list(stream)
        with pytest.raises(EngineError, match="failed earlier"):
            model.generate("x")


def errors_of(ask: Callable[[], object]) -> Any:
    try:
        return ask()
    except EngineError as error:
        return error


def test_logits_between_which_others_were_served_are_the_same(impatient: None) -> None:
    ids = list(range(7))
    with fake.model() as model:
        want = model.logits(ids)
        slices = model.evaluate(ids, 3)
        found = [next(slices)]
        assert said_by(lambda: model.generate("x", max_tokens=3).finish_reason) == ["length"]
        with pytest.raises(UsageError, match="still open"):
            found.append(next(slices))
            model.generate("x")
        found.extend(slices)
        assert (np.concatenate(found)[[2, 5, 6]] == want[[2, 5, 6]]).all()
        assert model._desk.cache.steps == [(3, 3), (3, 3), (1, 1)]
        next(model.evaluate(ids))
        assert model.generate("x", max_tokens=1).finish_reason == "length"


def test_a_loop_that_is_closed_while_its_tasks_wait_or_hold_is_passed_over(impatient: None) -> None:
    with fake.model(says="abc") as model:
        loops = [asyncio.new_event_loop() for _ in range(2)]
        tasks = []

        async def hold() -> None:
            async with model.astream("x") as stream:
                await anext(stream)
                await asyncio.Event().wait()

        for loop in loops:
            tasks.append(loop.create_task(hold()))
            loop.run_until_complete(asyncio.sleep(0.02))
            loop.close()
        assert said_by(lambda: model.generate("x").text) == ["abc"]
        for task in tasks:
            task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_an_engine_has_the_stack_that_it_needs() -> None:
    script = """
import threading
import time
threading.stack_size(32768)
from edgepack import fake
deep = []
for _ in range(900):
    deep = [deep]
model = fake.model(says="abc")
print(len(model._desk.owner.call(lambda: repr(deep))), model.generate("x").text, threading.stack_size())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "1802 abc 32768\n"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds the model unread gives way at once."""
    monkeypatch.setattr(desk, "_PATIENCE_S", 0.01)


def test_tasks_are_served_in_the_order_in_which_they_came() -> None:
    order: list[int] = []

    async def ask(number: int) -> None:
        await model.agenerate("x")
        order.append(number)

    async def all_of_them() -> None:
        await asyncio.gather(*(ask(number) for number in range(5)))
        async with model.astream("x") as stream:
            with pytest.raises(UsageError, match="still open"):
                await model.agenerate("y")
            with pytest.raises(UsageError, match="still open"):
                model.generate("y")  # it would block the loop for ever
            assert "".join([chunk.text async for chunk in stream]) == "abc"

    with fake.model(says="abc") as model:
        asyncio.run(all_of_them())
    assert order == [0, 1, 2, 3, 4]


def test_a_task_that_gave_up_waiting_is_passed_over() -> None:
    async def main() -> str:
        async with model.astream("x"):
            given_up = asyncio.create_task(model.agenerate("y"))
            patient = asyncio.create_task(model.agenerate("z"))
            while len(model._desk._waiting) < 2:
                await asyncio.sleep(0)
            given_up.cancel()
            with pytest.raises(asyncio.CancelledError):
                await given_up
        return (await patient).text

    with fake.model(says="abc") as model:
        assert asyncio.run(main()) == "abc"


def test_closing_ends_what_runs_and_refuses_what_waits() -> None:
    outcomes: list[object] = []

    def wait() -> None:
        try:
            model.generate("y")
        except EngineError as error:
            outcomes.append(error.message)

    model = fake.model(says="abc")
    with model.stream("x") as stream:
        assert next(stream).text == "a"
        thread = threading.Thread(target=wait)
        thread.start()
        while not model._desk._waiting:
            pass
        model.close()
        assert list(stream) == []
    thread.join()
    assert (stream.result.text, stream.result.finish_reason) == ("a", "cancelled")
    assert outcomes == ["The model is closed."]
    model.close()
    with pytest.raises(EngineError, match="closed"):
        model.generate("x")


def test_a_model_that_nobody_has_any_more_closes_its_session() -> None:
    model = fake.model(says="abc")
    session = model._desk.session
    assert isinstance(session, FakeSession)
    owner, gone = model._desk.owner, weakref.ref(model)
    stream = model.stream("x")
    del model
    gc.collect()
    assert gone() is None
    with stream:
        assert "".join(chunk.text for chunk in stream) == "abc"  # a stream keeps the engine, though not the model
    del stream
    gc.collect()
    assert session._closed
    with pytest.raises(EngineError, match="closed"):
        owner.call(lambda: None)


def test_a_fork_is_told_so() -> None:
    script = """
import os
from edgepack import fake
model = fake.model(says="abc")
stream = model.stream("x")
next(stream.__enter__())
child = os.fork()
if not child:
    for ask in (lambda: model.generate("x"), lambda: next(stream), stream.close, model.close):
        try:
            ask()
        except Exception as error:
            print(type(error).__name__, error, flush=True)
    raise SystemExit
os.waitpid(child, 0)
stream.close()
print(model.generate("x").text)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert (
        done.stdout
        == "EngineError A model does not survive a fork. Load it in the process that uses it.\n" * 2 + "abc\n"
    )
    assert done.stderr == ""


def test_a_close_at_any_moment_leaves_nobody_waiting() -> None:
    def ask(model: Model, whole: bool) -> None:
        with pytest.raises(EngineError, match="The model is closed"):
            while True:
                if whole:
                    model.generate("x", max_tokens=3)
                else:
                    with model.stream("y", max_tokens=3) as stream:
                        list(stream)

    between = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(6) as pool:
            for round_ in range(60):
                with fake.model(says="abc" * 5) as model:
                    asking = [pool.submit(ask, model, whole) for whole in (True, False) * 3]
                    time.sleep(0.002 * (round_ % 5))
                for each in asking:
                    each.result(30)
    finally:
        sys.setswitchinterval(between)
