"""The contract: every promise on every engine, and every planted fault found.

The promises are in ``contract``, a module for each theme.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from contract import bound, ends, limits, loops, stopping, surface, text, thinking, turns
from contract.case import Case
from contract.registry import PROMISES, Fault, Promise
from edgepack.bundle.files import Bundle, open_bundle
from edgepack.errors import EdgepackError
from edgepack_packager.build import Built

ENGINES = ("gguf", "onnx", "mlx")  # what the first gives, the others must give too
FAULTY = "onnx"  # the fastest, for planted faults
THEMES = (text, ends, limits, stopping, loops, turns, bound, thinking, surface)  # imported for their promises
FAULTS = [(promise, fault) for promise in PROMISES for fault in promise.faults]


class Cases:
    """A case for each engine, opened when it is first used, and which promise was checked on it."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.bundle = bundle
        self.folder = folder
        self.said: dict[object, object] = {}
        self._cases: dict[str, Case] = {}
        self._checked: set[tuple[str, str]] = set()

    def check(self, promise: Promise, engine: str) -> None:
        """Check a promise on an engine, on the first one before any other."""
        if engine != ENGINES[0] and (ENGINES[0], promise.name) not in self._checked:
            self.check(promise, ENGINES[0])
        if engine not in self._cases:
            self._cases[engine] = self.new(engine, guard_s=30)
        case = self._cases[engine]
        case.fresh()
        try:
            promise.check(case)
        except BaseException:
            del self._cases[engine]  # one promise that does not hold must not break the next
            case.close()
            raise
        self._checked.add((engine, promise.name))

    def was_checked(self, promise: Promise, engine: str) -> bool:
        return (engine, promise.name) in self._checked

    def new(self, engine: str, guard_s: float) -> Case:
        return Case(self.bundle, engine, self.said, self.folder, guard_s)

    def close(self) -> None:
        for case in self._cases.values():
            case.close()


@pytest.fixture(scope="module")
def cases(demo_bundle: Built, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cases]:
    cases = Cases(open_bundle(demo_bundle.path), tmp_path_factory.mktemp("contract"))
    yield cases
    cases.close()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("promise", PROMISES, ids=[promise.name for promise in PROMISES])
def test_a_promise_holds(promise: Promise, engine: str, cases: Cases) -> None:
    cases.check(promise, engine)


@pytest.mark.parametrize(
    ("promise", "fault"), FAULTS, ids=[f"{promise.name}-{fault.__name__}" for promise, fault in FAULTS]
)
def test_a_planted_fault_breaks_it(promise: Promise, fault: Fault, cases: Cases) -> None:
    if not cases.was_checked(promise, FAULTY):
        cases.check(promise, FAULTY)
    case = cases.new(FAULTY, guard_s=2)
    try:
        with pytest.MonkeyPatch.context() as patch:
            fault(patch)
            with pytest.raises((AssertionError, pytest.fail.Exception, EdgepackError)):
                promise.check(case)
    finally:
        closing = Thread(target=case.close, daemon=True)  # which the fault may keep from its end
        closing.start()
        closing.join(case.guard_s)


@pytest.mark.parametrize("promise", PROMISES, ids=[promise.name for promise in PROMISES])
def test_a_promise_can_be_broken(promise: Promise) -> None:
    assert promise.faults, "a promise that nothing breaks says nothing"
