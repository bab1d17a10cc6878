"""How it is stopped: a cancel from anywhere ends prefill and decode alike, and the model goes on as if nothing was."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from threading import Event, Thread, get_ident, main_thread
from typing import Any

import pytest

from contract.case import CHUNK, LONG, Case, Watched, holds_what_it_should
from contract.registry import promise
from edgepack.decoding.desk import Desk
from edgepack.decoding.seat import Seats
from edgepack.decoding.steps import Steps
from edgepack.decoding.stream import Stream
from edgepack.decoding.turn import Turn
from edgepack.errors import EngineError
from edgepack.model import Model

DECODING = 8  # a forward after the prefill of LONG


def steps_of(case: Case) -> int:
    """Return the forwards that the prefill of LONG takes."""
    steps = -(-len(case.model.tokenize(LONG)) // CHUNK)
    assert 2 < steps < DECODING
    return steps


def at(number: int, action: Callable[[], None]) -> Callable[[int], None]:
    """Return what does something before that forward."""
    return lambda current: action() if current == number else None


def in_another_thread(action: Callable[[], None]) -> None:
    thread = Thread(target=action)
    thread.start()
    thread.join()


def goes_on(case: Case, model: Model, before: tuple[str, tuple[int, ...]]) -> None:
    """Assert that the model gives the same as before, and that the cache is what the SDK takes it for."""
    assert holds_what_it_should(model)
    case.watch.reset()
    again = case.ends(lambda: model.generate(LONG, max_tokens=12))
    assert (again.text, again.token_ids) == before


def long_text(case: Case) -> tuple[str, tuple[int, ...]]:
    """Return what the prompt LONG gives, from an empty cache."""
    result = case.model.generate(LONG, max_tokens=12)
    case.model._desk.owner.call(lambda: case.model._desk.seat.rewind(0))
    case.watch.reset()
    return result.text, result.token_ids


def forgotten(case: Case) -> None:
    """Empty the cache, so that the next prefill has all its steps."""
    case.model._desk.owner.call(lambda: case.model._desk.seat.rewind(0))
    case.watch.reset()


@promise
def a_cancel_from_another_thread_ends_prefill_and_decode(case: Case) -> None:
    before = long_text(case)
    prefill = steps_of(case)
    for number in (0, 1, prefill - 1, prefill, DECODING):
        forgotten(case)
        stream = case.model.stream(LONG, max_tokens=12)
        case.watch.before = at(number, lambda stream=stream: in_another_thread(stream.cancel))  # type: ignore[misc]
        with stream:
            pieces = list(stream)
        # The engine is told, and where it does not run at this moment, the SDK does not go on.
        assert case.watch.cancelled.is_set()
        assert len(case.watch.calls) == number + 1
        result = stream.result
        assert (result.finish_reason, result.stop) == ("cancelled", None)
        assert "".join(piece.text for piece in pieces) == result.text
        assert before[0].startswith(result.text)
        # The step that was about to begin gives one more token, where it is not the engine that ends it.
        assert result.usage.completion_tokens == len(result.token_ids) == max(0, number - prefill + 2)
        case.same(("cancelled", number), (result.text, result.usage.to_dict()))
        goes_on(case, case.model, before)


@a_cancel_from_another_thread_ends_prefill_and_decode.broken_by
def a_cancel_that_is_ignored_in_prefill(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Steps, "cancel", lambda self: None)


@a_cancel_from_another_thread_ends_prefill_and_decode.broken_by
def a_cancel_that_does_not_reach_the_engine(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Desk, "cancel", lambda self, turn: None)


@promise
def a_cancel_stops_an_engine_that_runs(case: Case) -> None:
    before = long_text(case)
    done = Event()
    stream = case.model.stream(LONG, max_tokens=12)

    def keep_cancelling() -> None:
        while not done.is_set():
            stream.cancel()

    canceller = Thread(target=keep_cancelling)
    case.watch.before = at(1, canceller.start)
    try:
        with stream:
            assert list(stream) == []
    finally:
        done.set()
        if canceller.ident is not None:
            canceller.join()
    assert len(case.watch.calls) == 2
    goes_on(case, case.model, before)


@a_cancel_stops_an_engine_that_runs.broken_by
def a_cancel_that_stops_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "cancel", lambda self: None)


@a_cancel_stops_an_engine_that_runs.broken_by
def an_engine_that_keeps_half_a_step(patch: pytest.MonkeyPatch) -> None:
    real = Watched.forward

    def forward(self: Watched, tokens: Any) -> Any:
        try:
            return real(self, tokens)
        finally:
            if self.cancelled.is_set():
                self.engine.rewind(self.engine.length // 2)

    patch.setattr(Watched, "forward", forward)


@promise
def leaving_the_block_ends_the_generation(case: Case) -> None:
    before = long_text(case)
    with case.model.stream(LONG, max_tokens=12) as stream:
        pieces = [next(stream), next(stream)]
    assert stream.result.finish_reason == "cancelled"
    assert stream.result.text == pieces[0].text + pieces[1].text
    assert list(stream) == []
    goes_on(case, case.model, before)
    with pytest.raises(KeyError), case.model.stream(LONG) as stream:
        raise KeyError
    goes_on(case, case.model, before)

    async def leave() -> None:
        async with case.model.astream(LONG, max_tokens=12) as stream:
            await anext(stream)
        assert stream.result.finish_reason == "cancelled"

    case.runs(leave())
    goes_on(case, case.model, before)


@leaving_the_block_ends_the_generation.broken_by
def a_block_that_keeps_the_model(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "__exit__", lambda self, kind, error, trace: None)


@promise
def a_cancelled_task_stops_the_engine(case: Case) -> None:
    before = long_text(case)
    for number in (1, DECODING):
        forgotten(case)
        case.runs(cancelled_at(case, number))
        assert case.watch.cancelled.is_set()
        assert len(case.watch.calls) == number + 1
        goes_on(case, case.model, before)


async def cancelled_at(case: Case, number: int, times: int = 1) -> None:
    """Cancel the task of a generation so many times while the engine is in that forward."""
    loop = asyncio.get_running_loop()
    inside, go_on = asyncio.Event(), Event()

    def wait() -> None:
        loop.call_soon_threadsafe(inside.set)
        go_on.wait(case.guard_s)

    case.watch.before = at(number, wait)
    task = asyncio.create_task(case.model.agenerate(LONG, max_tokens=12))
    await inside.wait()
    for _ in range(times):
        task.cancel()
        for _ in range(3):  # the task gets to what it does when it is cancelled
            await asyncio.sleep(0)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task


@a_cancelled_task_stops_the_engine.broken_by
def a_task_that_leaves_its_work_behind(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "cancel", lambda self: None)


@promise
def a_task_that_is_cancelled_again_frees_the_model(case: Case) -> None:
    before = long_text(case)
    for times in (2, 3):
        forgotten(case)
        case.runs(cancelled_at(case, 1, times))
        goes_on(case, case.model, before)


@a_task_that_is_cancelled_again_frees_the_model.broken_by
def an_end_that_is_not_seen(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "has_ended", property(lambda self: False))


@promise
def a_ctrl_c_stops_the_engine(case: Case) -> None:
    before = long_text(case)
    assert get_ident() == main_thread().ident
    for number in (1, DECODING):
        asks: tuple[Callable[[], object], ...] = (
            lambda: case.model.generate(LONG, max_tokens=12),
            lambda: asyncio.run(case.model.agenerate(LONG, max_tokens=12)),
        )
        for ask in asks:
            forgotten(case)
            case.watch.before = at(number, lambda: ctrl_c(case))
            with pytest.raises(KeyboardInterrupt):
                ask()
            assert len(case.watch.calls) == number + 1
            goes_on(case, case.model, before)


def ctrl_c(case: Case) -> None:
    """Interrupt the main thread, and wait until it has told the engine."""
    main = main_thread().ident
    assert main is not None
    for _ in range(2):  # a signal between its last look at signals and its wait is seen when the wait ends
        signal.pthread_kill(main, signal.SIGINT)
        if case.watch.cancelled.wait(case.guard_s / 30):
            return


@a_ctrl_c_stops_the_engine.broken_by
def a_wait_that_leaves_the_engine_running(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "cancel", lambda self: None)


# The end of a model


@promise
def a_model_may_be_closed_in_every_order(case: Case) -> None:
    model, _ = case.open()
    talk = model.chat()
    ended = model.stream("The apples")
    with model.stream("The apples", max_tokens=12) as stream:
        next(stream)
        model.close()
        assert list(stream) == []
    assert stream.result.finish_reason == "cancelled"
    model.close()
    asks: list[Callable[[], object]] = [
        lambda: model.generate("x"),
        lambda: model.stream("x"),
        lambda: ended.__enter__(),
        lambda: talk.send("x"),
        lambda: model.logits([5]),
        lambda: asyncio.run(model.agenerate("x")),
    ]
    for ask in asks:
        with pytest.raises(EngineError, match="closed") as caught:
            case.ends(ask)
        assert caught.value.hint

    other, watch = case.open()
    inside, closed = Event(), Event()

    def close() -> None:
        inside.wait()
        other.close()
        closed.set()

    closer = Thread(target=close, daemon=True)
    closer.start()

    def wait_for_the_cancel(number: int) -> None:
        inside.set()
        assert watch.cancelled.wait(case.guard_s)

    watch.before = wait_for_the_cancel
    with other.stream(LONG) as stream:
        assert case.ends(lambda: list(stream)) == []
    assert closed.wait(case.guard_s)
    assert len(watch.calls) == 1


@a_model_may_be_closed_in_every_order.broken_by
def a_close_that_only_looks_like_one(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Seats, "check", lambda self: None)


@a_model_may_be_closed_in_every_order.broken_by
def a_close_that_waits_for_the_text(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Stream, "_stop", lambda self: self._desk.owner.call(self.close))
