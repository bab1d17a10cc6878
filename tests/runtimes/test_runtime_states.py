"""Layers whose state cannot be cut: sessions go back to marks, and from there on they are as new ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cancelling import cancelling
from decoders import LFM2, LFM3, RandomWeights, describe
from gguf_decoders import QWEN35
from variants import token_ids

from edgepack import runtime
from edgepack.device.memory import MARKS
from edgepack.errors import Cancelled
from edgepack.isolation.isolate import IsolatedRuntime
from edgepack.runtime import Options, Runtime, Session
from edgepack_packager import targets
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write
from edgepack_runtimes.marks import Marks

CONTEXT = 96
DECODERS = {
    "convolutions": describe(**LFM2),
    "delta rules": describe(**QWEN35),
    "windows between convolutions": describe(**LFM3),
}
NO_GGUF = {"windows between convolutions"}
IDS = token_ids(DECODERS["convolutions"], CONTEXT)
OTHERS = [(each + 7) % 128 for each in IDS]

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an f32 variant for each engine."""
    folder = tmp_path_factory.mktemp("states")
    for kind, decoder in DECODERS.items():
        names = [name for name in targets.names() if name != "gguf" or kind not in NO_GGUF]
        requests = [Request(targets.find(name), "f32", "f32") for name in names]
        write(RandomWeights(decoder), requests, folder / kind, Model("tiny", decoder, "f32"))
    return folder


@pytest.fixture(params=["gguf", "gguf isolated", "mlx", "onnx"])
def engine(request: pytest.FixtureRequest) -> Runtime:
    name, *how = request.param.split()
    return IsolatedRuntime(name) if how else runtime.find(name)


@pytest.fixture(params=DECODERS)
def opening(request: pytest.FixtureRequest, engine: Runtime, variants: Path) -> Iterator[Open]:
    kind, decoder = request.param, DECODERS[request.param]
    if engine.name == "gguf" and kind in NO_GGUF:
        pytest.skip("llama.cpp has no such graph")
    opened: list[Session] = []

    def open_session(**changes: object) -> Session:
        options = {"context": CONTEXT, "threads": 1, "kv_cache": "f32", "chunk": 16} | changes
        place = variants / kind / f"{engine.name}-f32"
        opened.append(engine.open(place, decoder, Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


def said(session: Session, *steps: Sequence[int]) -> list[Float32]:
    """Return the logits after each step."""
    return [session.forward(step) for step in steps]


def test_a_rewind_keeps_what_is_marked_and_says_so(opening: Open) -> None:
    session = opening()
    said(session, IDS[:30], *([each] for each in IDS[30:40]))
    assert session.rewind(40) == 40
    assert session.rewind(35) == session.length == 30  # the end of the prompt
    assert session.rewind(29) in (0, 16)  # another process is asked chunk by chunk


def test_from_a_mark_on_all_is_as_after_the_same_steps(opening: Open) -> None:
    fresh = opening()
    expected = said(fresh, IDS[:30], IDS[30:40], IDS[40:41], IDS[41:60])
    session = opening()
    said(session, IDS[:30], OTHERS[30:50], OTHERS[50:51])
    assert session.rewind(37) == 30
    found = said(session, IDS[30:40], IDS[40:41], IDS[41:60])
    assert all(np.array_equal(one, other) for one, other in zip(found, expected[1:], strict=True))


def test_guesses_go_back_to_what_was_before_them(opening: Open) -> None:
    fresh = opening()
    expected = said(fresh, IDS[:20], IDS[20:21], IDS[21:24])
    session = opening()
    said(session, IDS[:20], IDS[20:21])
    session.forward_all([IDS[21], *OTHERS[22:28]])
    assert session.rewind(22) == 21
    assert np.array_equal(session.forward(IDS[21:24]), expected[2])


def test_after_nothing_all_is_as_in_a_new_session(opening: Open) -> None:
    session = opening()
    (expected,) = said(session, IDS[:40])
    said(session, OTHERS[40:50])
    assert session.rewind(0) == 0
    assert np.array_equal(session.forward(IDS[:40]), expected)


def test_the_way_a_sequence_is_split_does_not_matter(opening: Open) -> None:
    session = opening()
    whole = session.forward_all(IDS)
    for split in (1, 2, 3, 15, 16, 17, 95):
        session.rewind(0)
        parts = np.concatenate([session.forward_all(IDS[:split]), session.forward_all(IDS[split:])])
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_a_cancelled_prefill_goes_back_to_a_mark(opening: Open, engine: Runtime) -> None:
    session = opening(chunk=2)
    expected = session.forward(IDS[:10])
    session.rewind(0)
    session.forward(IDS[:4])
    with cancelling(session), pytest.raises(Cancelled):
        for _ in range(100_000):
            session.forward(IDS[session.length : 80])
            session.rewind(4)
    kept = session.length  # by another process, which is asked chunk by chunk, the mark may have made room for others
    assert kept == 4 or (kept in (0, 2) and isinstance(engine, IsolatedRuntime))
    np.testing.assert_allclose(session.forward(IDS[kept:10]), expected, rtol=1e-4, atol=1e-4)


def test_a_single_token_that_is_cancelled_leaves_a_mark(opening: Open) -> None:
    session = opening()
    expected = session.forward_all(IDS[:20])
    session.rewind(0)
    session.forward(IDS[:10])
    session.forward(IDS[10:11])
    with cancelling(session), pytest.raises(Cancelled):
        for _ in range(100_000):
            session.forward(IDS[session.length : session.length + 1])
            if session.length > 90:
                assert session.rewind(10) == 10
    kept = session.rewind(min(session.length, 10))
    assert kept in (0, 10)
    np.testing.assert_allclose(session.forward(IDS[kept:20]), expected[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, name) for kind in DECODERS for name in ("gguf", "mlx", "onnx") if name != "gguf" or kind not in NO_GGUF],
)
def test_a_state_that_is_kept_is_not_written_again(
    name: str, kind: str, variants: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep, kept = Marks.keep, list[int]()

    def counted(marks: Marks[Any], length: int, state: Any) -> None:
        kept.append(length)
        keep(marks, length, state)

    monkeypatch.setattr(Marks, "keep", counted)
    options = Options(context=CONTEXT, threads=1, kv_cache="f32", chunk=16)
    session = runtime.find(name).open(variants / kind / f"{name}-f32", DECODERS[kind], options)
    try:
        for begin in (0, 10, 20):
            session.forward(IDS[begin : begin + 10])
        assert kept == [10, 20, 30]
        session.forward(IDS[30:31])
        session.forward(IDS[31:40])
        assert kept == [10, 20, 30, 31, 40]
    finally:
        session.close()


def test_marks_are_few_and_lie_apart() -> None:
    marks: Marks[int] = Marks()
    for length in (*range(100, 1000, 100), 905, 907):
        marks.keep(length, -length)
        assert marks.back(length) == (length, -length)
    kept = []
    while (newest := marks.back(length := (kept[-1] - 1 if kept else 10_000)))[1] is not None:
        assert newest[0] <= length
        kept.append(newest[0])
    assert len(kept) == MARKS
    assert kept[0] == 907
    assert kept[-1] <= 500
    assert marks.back(5) == (0, None)


def test_a_mark_is_replaced_by_one_of_the_same_length() -> None:
    marks: Marks[str] = Marks()
    marks.keep(4, "first")
    marks.keep(4, "second")
    assert marks.back(9) == (4, "second")
    marks.clear()
    assert marks.back(9) == (0, None)
