"""The speed of a runtime: asked apart, remembered, and measured again after a busy machine, a few times."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from edgepack.device.engine import Rate, Speed
from edgepack.device.hardware import Hardware
from edgepack.errors import EngineCrashedError
from edgepack.isolation import process, timing

HARDWARE = Hardware("linux", "x86_64", 2, 2, None, 1 << 30, 1 << 29)


def speed(prefill: float, decode: float, *, settled: bool = True) -> Speed:
    return Speed(2, {"q4": Rate(prefill, decode)}, Rate(prefill, decode), settled)


class Children:
    """What the next children answer, and how many were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answers: list[Speed | Exception | None] = []
        self.asked = 0
        monkeypatch.setattr(process, "run", self._run)

    def _run(self, what: str, module: str, name: str, *, given: bytes, timeout_s: float) -> bytes:
        self.asked += 1
        self.schemes = msgspec.json.decode(given, type=timing.Question).schemes
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return msgspec.json.encode(answer)

    def find(
        self, *answers: Speed | Exception | None, now: str = "now", schemes: tuple[str, ...] = ("q4",)
    ) -> Speed | None:
        self.answers = list(answers)
        return timing.find("gguf", now, HARDWARE, schemes)


@pytest.fixture
def children(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Children:
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "state"))
    return Children(monkeypatch)


def test_a_quiet_measurement_is_the_last(children: Children) -> None:
    assert children.find(speed(1.0, 2.0)) == speed(1.0, 2.0)
    assert children.find() == speed(1.0, 2.0)
    assert children.asked == 1
    assert children.find(speed(3.0, 4.0), now="another engine") == speed(3.0, 4.0)


def test_the_schemes_are_part_of_the_question(children: Children) -> None:
    children.find(speed(1.0, 2.0), schemes=("q8", "q4"))
    assert children.schemes == ("q4", "q8")
    assert children.find(schemes=("q4", "q8")) == speed(1.0, 2.0)
    assert children.find(speed(3.0, 4.0), schemes=("q4",)) == speed(3.0, 4.0)
    assert children.asked == 2


def test_beside_busy_programs_the_best_of_a_few_is_kept(children: Children) -> None:
    assert children.find(speed(3.0, 2.0, settled=False)) is not None
    children.find(speed(2.0, 5.0, settled=False))
    last = children.find(speed(4.0, 4.0, settled=False))
    assert last is not None
    assert last.rates["q4"] == Rate(2.0, 2.0)
    assert (last.settled, last.tries) == (False, timing.TRIES)
    assert children.find() == last
    assert children.asked == timing.TRIES


def test_a_quiet_measurement_replaces_a_disturbed_one(children: Children) -> None:
    children.find(speed(1.0, 1.0, settled=False))
    found = children.find(speed(2.0, 2.0))
    assert found is not None
    assert (found.rates["q4"], found.settled) == (Rate(2.0, 2.0), True)


def test_a_runtime_that_tells_none_is_asked_once(children: Children) -> None:
    assert children.find(None) is None
    assert children.find() is None
    assert children.asked == 1


def test_a_child_that_crashes_is_no_error_and_not_tried_for_ever(children: Children) -> None:
    for _ in range(timing.TRIES):
        assert children.find(EngineCrashedError("The timing of gguf was ended by SIGSEGV.")) is None
    assert children.find() is None
    assert children.asked == timing.TRIES


def test_what_is_certain_of_all_questions_is_known_together(children: Children) -> None:
    children.find(speed(1.0, 2.0))
    children.find(replace(speed(0.0, 0.0), rates={"q8": Rate(3.0, 4.0)}), schemes=("q8",))
    children.find(replace(speed(0.0, 0.0), rates={"q5": Rate(9.0, 9.0)}, settled=False), schemes=("q5",))
    assert timing.known_rates("gguf", "now") == {"q4": Rate(1.0, 2.0), "q8": Rate(3.0, 4.0)}
    assert timing.known_rates("gguf", "another engine") == timing.known_rates("onnx", "now") == {}
    assert children.asked == 3


def test_where_nothing_can_be_remembered_nothing_is_measured(
    children: Children, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EDGEPACK_STATE", str(tmp_path / "file" / "state"))
    assert children.find() is None
    assert children.asked == 0
