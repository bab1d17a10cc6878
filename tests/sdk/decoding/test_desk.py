"""The owner's thread and the queue before it: order, interruption, failure, and the end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import weakref

import pytest

from edgepack import fake
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
    owner.stop(5)


def test_an_error_is_the_callers() -> None:
    owner = Owner("test")
    with pytest.raises(ZeroDivisionError):
        owner.call(lambda: 1 / 0)
    assert owner.call(lambda: 1) == 1
    owner.stop(5)


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
            while not model.desk._waiting:
                pass
            order.extend(chunk.text for chunk in stream)
        thread.join()
    assert order == ["a", "b", "c", "abc"]


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
            while len(model.desk._waiting) < 2:
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
        while not model.desk._waiting:
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
    session = model.desk.session
    assert isinstance(session, FakeSession)
    owner, gone = model.desk.owner, weakref.ref(model)
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
child = os.fork()
if not child:
    try:
        model.generate("x")
    except Exception as error:
        print(type(error).__name__, error, flush=True)
    raise SystemExit
os.waitpid(child, 0)
print(model.generate("x").text)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "EngineError A model does not survive a fork. Load it in the process that uses it.\nabc\n"
    assert done.stderr == ""
