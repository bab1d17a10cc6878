"""Handlers of signals that raise, at every place where the interpreter looks for a signal: the model is as before.

Such a place is where a Python function begins, where a C function has returned, and within one that waits. A profiler
is called just there, so that it can raise what a handler would, at the n-th place for every n.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import Any

import pytest

from edgepack import Model, fake
from edgepack.decoding import desk as desk_module
from edgepack.decoding import owner
from edgepack.decoding.owner import Bell, Outcome
from edgepack.decoding.turn import Turn
from edgepack.fake import FakeSession

WAITS = ("acquire", "get", "poll", "select")
# Of an event loop that a handler tears from its own work nobody can promise anything.
OTHERS = (__file__, "selectors.py", *(str(path) for path in Path(asyncio.__file__).parent.glob("*.py")))
pytestmark = [  # of destructors, of tasks that never begin, and of who waits in vain
    pytest.mark.filterwarnings("ignore:coroutine:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]
HELD: list[BaseException] = []  # with their tracebacks, and so with all that was going on


class Alarm(KeyboardInterrupt):
    """What the handler raises; an event loop would keep any other to itself."""


@contextmanager
def ringing(at: int) -> Iterator[list[int]]:
    """Raise at that place in code which is not this file's; yields the number of places so far."""
    seen = [0]

    def profile(frame: FrameType, event: str, argument: object) -> None:
        waits = event == "c_call" and getattr(argument, "__name__", "") in WAITS
        if (waits or event in ("call", "c_return")) and not frame.f_code.co_filename.endswith(OTHERS):
            seen[0] += 1
            if seen[0] == at:
                sys.setprofile(None)
                raise Alarm

    sys.setprofile(profile)
    try:
        yield seen
    finally:
        sys.setprofile(None)


def generate(model: Model) -> None:
    model.generate("abcd", max_tokens=3)


def stream(model: Model) -> None:
    with model.stream("abcd", max_tokens=3) as stream:
        for _ in stream:
            pass


def leave(model: Model) -> None:
    with model.stream("abcd", max_tokens=9) as stream:
        next(stream)


def converse(model: Model) -> None:
    chat = model.chat(max_tokens=3)
    chat.send("One?")
    chat.undo()
    with chat.stream("Two?") as stream:
        next(stream)


def evaluate(model: Model) -> None:
    for _ in model.evaluate([1, 2, 3, 4], 2):
        pass


def tasks(model: Model) -> None:
    async def read() -> None:
        async with model.astream("abcd", max_tokens=3) as stream:
            async for _ in stream:
                pass
        await model.agenerate("abcd", max_tokens=2)

    asyncio.run(read())


def is_as_before(model: Model, want: str, wait_s: float) -> None:
    """Assert that another thread is answered as ever, and that the cache is what the SDK takes it for."""
    said: list[str] = []
    other = Thread(target=lambda: said.append(model.generate("abcd").text), daemon=True)
    other.start()
    other.join(wait_s)
    assert said == [want]
    desk = model._desk
    session: Any = desk.session
    assert isinstance(session, FakeSession)
    assert (
        desk.owner.call(lambda: session.length) == len(desk.cache.tokens) == sum(kept for kept, _ in desk.cache.steps)
    )
    assert not session._cancelled.is_set()


def storm(ask: Callable[[Model], None], step: int, wait_s: float = 20) -> int:
    """Interrupt a request at each place, one after the other; return how many places there were."""
    with fake.model(says="Once more.") as model:
        want = model.generate("abcd").text
        at, seen = 0, [0]
        while seen[0] >= at:
            at += step
            try:
                with ringing(at) as seen:
                    ask(model)
            except Alarm as error:
                HELD.append(error)
            is_as_before(model, want, wait_s)
        HELD.clear()
        gc.collect()
    return at


@pytest.mark.parametrize("ask", [generate, stream, leave, converse, evaluate, tasks], ids=lambda ask: ask.__name__)
def test_an_alarm_leaves_the_model_as_it_was(ask: Callable[[Model], None], patience: None) -> None:
    assert storm(ask, step=17 if ask is tasks else 3) > 50


@pytest.mark.hostile
@pytest.mark.parametrize("ask", [generate, stream, leave, converse, evaluate, tasks], ids=lambda ask: ask.__name__)
def test_every_alarm_does(ask: Callable[[Model], None], patience: None) -> None:
    storm(ask, step=5 if ask is tasks else 1)


def embed(model: Model) -> None:
    asyncio.run(model.aembed(["abcd", "efgh"]))


@pytest.mark.parametrize("ring", range(8))
@pytest.mark.parametrize(("made", "ask"), [(fake.model, tasks), (fake.embedding_model, embed)], ids=["tasks", "embed"])
def test_a_task_ends_whose_wake_an_alarm_has_taken(
    made: Callable[[], Model], ask: Callable[[Model], None], ring: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rings, end = itertools.count(), Bell._end

    def torn(bell: Bell) -> None:
        if next(rings) == ring:
            raise Alarm
        end(bell)

    monkeypatch.setattr(Bell, "_end", torn)
    with made() as model:
        for _ in range(2):  # the second time, nothing is torn
            asking = Thread(target=ask, args=[model], daemon=True)
            asking.start()
            asking.join(20)
            assert not asking.is_alive()


def a_turn_that_only_its_block_gives_back(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Turn, "has_ended", property(lambda self: self.over))
    patch.setattr(desk_module, "_PATIENCE_S", 1e6)


def a_condition_that_stays_locked(patch: pytest.MonkeyPatch) -> None:
    class Conditional(Outcome[Any]):
        def __init__(self, told: Callable[[], object] | None = None) -> None:
            super().__init__(told)
            self._future: Future[None] = Future()

        def wait(self, timeout_s: float | None = None) -> None:
            self._future.result(timeout_s)

        def _open(self) -> None:
            super()._open()
            self._future.set_result(None)

    patch.setattr(desk_module, "Outcome", Conditional)
    patch.setattr(owner, "Outcome", Conditional)


@pytest.mark.parametrize(
    ("fault", "ask"), [(a_turn_that_only_its_block_gives_back, leave), (a_condition_that_stays_locked, stream)]
)
def test_a_planted_fault_is_found(
    fault: Callable[[pytest.MonkeyPatch], None], ask: Callable[[Model], None], patience: None
) -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises((AssertionError, RuntimeError)):
        fault(patch)
        storm(ask, step=1, wait_s=0.3)


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream that is kept unread gives way at once."""
    monkeypatch.setattr(desk_module, "_PATIENCE_S", 0.01)
