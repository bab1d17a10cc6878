"""Sequences in llama.cpp: what a cancel leaves in its cells, wherever it falls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from decoders import LFM2, RandomWeights, describe
from variants import nmse, token_ids

from edgepack import runtime
from edgepack.errors import Cancelled, EngineError
from edgepack.runtime import Options, Step
from edgepack_packager import targets
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

DECODERS = {"llama": describe(), "convolutions": describe(**LFM2)}
IDS = token_ids(DECODERS["llama"], 60)
OPTIONS = Options(context=64, threads=1, kv_cache="f32", chunk=8, sequences=3)


@pytest.fixture(params=DECODERS)
def session(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    decoder = DECODERS[request.param]
    write(RandomWeights(decoder), [Request(targets.find("gguf"), "f32", "f32")], tmp_path, Model("t", decoder, "f32"))
    opened = runtime.find("gguf").open(tmp_path / "gguf-f32", decoder, OPTIONS)
    yield opened
    opened.close()


def held(session: Any) -> list[int]:
    """Return how many tokens llama.cpp itself has of each sequence."""
    native = session._native
    return [native.native.llama_memory_seq_pos_max(native.memory, each) + 1 for each in range(3)]


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_cancel_in_any_batch_of_a_step_takes_all_of_it_back(
    at: int, session: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [Step(each, IDS[20 * each + 8 : 20 * each + 16]) for each in range(3)]
    session.forward_batch([Step(each, IDS[20 * each : 20 * each + 8]) for each in range(3)])
    compute, calls = session._compute, list[int]()

    def cancelled() -> int:
        calls.append(1)
        if len(calls) == at:
            session.cancel()
        code: int = compute()
        return code

    monkeypatch.setattr(session, "_compute", cancelled)
    with pytest.raises(Cancelled):
        session.forward_batch(steps)
    assert len(calls) == at
    assert [session.length_of(each) for each in range(3)] == held(session) == [8, 8, 8]
    monkeypatch.undo()
    found = session.forward_batch(steps)
    session.rewind_sequence(1, 0)
    again = session.forward_batch([Step(1, IDS[20:28])]) + session.forward_batch([steps[1]])
    assert nmse(again[1], found[1]) <= 1e-10


def test_a_failure_forgets_what_was_computed_for_nothing(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session.forward_batch([Step(each, IDS[20 * each : 20 * each + 8]) for each in range(3)])
    session.forward_batch([Step(0, [1]), Step(2, [1])])  # the one between rests
    assert held(session) == [9, 8, 9]
    monkeypatch.setattr(session, "_compute", lambda: -3)
    with pytest.raises(EngineError, match="code -3"):
        session.forward_batch([Step(0, [1]), Step(2, [1])])
    assert session.length_of(1) == held(session)[1] == 8
