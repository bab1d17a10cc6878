"""Layers with a window hold two windows of a long context: what a session keeps, loses and computes then."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from decoders import RandomWeights, describe
from gguf_decoders import GEMMA2, GEMMA3, WINDOW, gemma4
from variants import nmse, token_ids

from edgepack import runtime
from edgepack.runtime import Options, Session, Snapshots
from edgepack_packager import targets
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write
from edgepack_runtimes.gguf import load
from edgepack_runtimes.gguf.ring import Ring, rearranged

CONTEXT, CHUNK, CELLS = 1024, 16, 256
KEPT = CELLS - WINDOW + 1  # tokens that can be taken back once the ring is full
DECODERS = {name: describe(context=CONTEXT, **fields) for name, fields in (("gemma2", GEMMA2), ("gemma3", GEMMA3))}
DECODERS["gemma4"] = gemma4(context=CONTEXT)  # whose layers share cells, those with values as wide as the widest
IDS = token_ids(DECODERS["gemma3"], CONTEXT)

Open = Callable[..., Session]


class WithoutMlps(RandomWeights):
    """A model whose MLPs add nothing, so that ggml's rounded gelu does not make more of small differences."""

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return super().rows(name, start, stop) * np.float32(not name.endswith(("mlp.down", "inputs.out")))


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rolling")
    for name, decoder in DECODERS.items():
        request = Request(targets.find("gguf"), "f32", "f32")
        write(WithoutMlps(decoder), [request], folder / name, Model("tiny", decoder, "f32"))
    return folder


@pytest.fixture
def opening(variants: Path) -> Iterator[Open]:
    opened: list[Session] = []

    def open_session(name: str = "gemma3", **changes: object) -> Session:
        options = {"context": CONTEXT, "threads": 1, "kv_cache": "f32", "chunk": CHUNK} | changes
        engine = runtime.find("gguf")
        opened.append(engine.open(variants / name / "gguf-f32", DECODERS[name], Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


@pytest.fixture
def whole(opening: Open, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Open a session that holds the whole context in every layer."""

    def open_whole(name: str = "gemma3", **changes: object) -> Session:
        with monkeypatch.context() as patch:
            patch.setattr(load, "_ring", lambda decoder, options: None)
            return opening(name, **changes)

    return open_whole


@pytest.mark.parametrize("kv_cache", ["f32", "f16"])
@pytest.mark.parametrize("name", DECODERS)
def test_what_is_computed_is_what_a_whole_cache_gives(name: str, kv_cache: str, opening: Open, whole: Open) -> None:
    rolling, other = opening(name, kv_cache=kv_cache), whole(name, kv_cache=kv_cache)
    assert nmse(rolling.forward_all(IDS), other.forward_all(IDS)) <= {"f32": 1e-12, "f16": 1e-5}[kv_cache]


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_long_context_keeps_a_window_of_tokens_that_can_be_taken_back(name: str, opening: Open, whole: Open) -> None:
    expected = whole(name).forward_all(IDS)
    session = opening(name)
    length = 3 * CELLS
    for back in (1, 7, WINDOW, KEPT):
        session.rewind(0)
        session.forward(IDS[:length])
        assert session.rewind(length - back) == session.length == length - back
        assert nmse(session.forward_all(IDS[length - back : length + 9]), expected[length - back : length + 9]) <= 1e-12
    session.rewind(0)
    session.forward(IDS[:length])
    assert session.rewind(length - KEPT - 1) == session.length == 0
    assert nmse(session.forward_all(IDS[:300]), expected[:300]) <= 1e-12


def test_until_the_ring_is_full_everything_can_be_taken_back(opening: Open) -> None:
    session = opening()
    expected = session.forward_all(IDS[:CELLS])
    for length in (CELLS - 1, WINDOW, 5, 0):
        session.rewind(0)
        session.forward(IDS[:CELLS])
        assert session.rewind(length) == length
        assert nmse(session.forward_all(IDS[length:CELLS]), expected[length:]) <= 1e-12


@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
@pytest.mark.parametrize("seed", range(6))
def test_what_is_kept_is_what_the_same_steps_give_bit_for_bit(seed: int, name: str, opening: Open) -> None:
    """Forwards and rewinds at random, and the steps that were kept of them in a session that knows of no others."""
    draw = np.random.default_rng(seed)
    session, again = opening(name), opening(name)
    steps: list[list[int]] = []
    crossed = 0
    for _ in range(400):
        if session.length < CONTEXT and draw.random() < 0.85:
            size = min(CONTEXT - session.length, int(draw.choice([1, 3, CHUNK])))
            steps.append([int(token) for token in draw.integers(0, 128, size)])
            session.forward(steps[-1])
        elif steps:
            count = min(len(steps), int(draw.choice([1, 1, 2, 4, 15])))
            length, wanted = session.length, session.length - sum(map(len, steps[-count:]))
            kept = session.rewind(wanted)
            assert kept == session.length
            assert kept in (wanted, 0)
            steps = steps[:-count] if kept else []
            crossed += kept > 0 and kept // CELLS < (length - 1) // CELLS
            if crossed == 1 + seed % 2:
                break
    assert crossed > 0
    for step in steps:
        again.forward(step)
    assert session.length == again.length
    for start in range(0, 60, 20):
        assert np.array_equal(session.forward(IDS[start : start + CHUNK]), again.forward(IDS[start : start + CHUNK]))
        assert np.array_equal(decode(session, start), decode(again, start))


@pytest.mark.parametrize("length", [CELLS - 7, CELLS, CELLS + 1, CELLS + WINDOW - 1, CELLS + WINDOW, 3 * CELLS - 20])
@pytest.mark.parametrize("back", [0, 9, KEPT - 40])
@pytest.mark.parametrize("name", ["gemma3", "gemma4"])
def test_a_snapshot_goes_on_bit_for_bit_and_forgets_what_the_cache_forgot(
    name: str, length: int, back: int, opening: Open, whole: Open
) -> None:
    session, again, other = opening(name), opening(name), whole(name)
    assert isinstance(session, Snapshots)
    assert isinstance(again, Snapshots)
    assert isinstance(other, Snapshots)
    session.forward(IDS[: length + back])
    session.rewind(length)
    state = session.snapshot()
    again.forward(IDS[300:900])
    for _ in range(2):
        again.restore(state)
        assert again.length == length
        later = decode(session, length), decode(again, length)
        assert np.array_equal(*later)
        session.rewind(length)
    again.restore(state)
    again.forward(IDS[length : length + 5])
    expected = other.forward_all(IDS[: length + 5])
    for step in (1, 2, 4, 40, 100, 100):
        kept = again.rewind(max(0, again.length - step))
        found = again.forward_all(IDS[kept : length + 5])
        assert nmse(found, expected[kept:]) <= 1e-12
    with pytest.raises(ValueError, match="The windows of the snapshot is in 256 cells, that of this session whole"):
        other.restore(state)


def decode(session: Session, length: int) -> Float32:
    return np.stack([session.forward([token]) for token in IDS[length : length + 60]])


def test_a_state_that_is_no_rings_is_not_rearranged() -> None:
    ring = Ring(WINDOW, CELLS)
    for state in (b"", bytes(40), bytes(1000)):
        assert rearranged(np.frombuffer(state, np.uint8), ring.positions(300)) is None


@pytest.mark.parametrize("length", [1, WINDOW, CELLS, CELLS + 1, CELLS + WINDOW - 1, CELLS + WINDOW, 5 * CELLS + 77])
def test_a_tokens_cell_follows_from_its_position(length: int) -> None:
    ring = Ring(WINDOW, CELLS)
    positions = ring.positions(length)
    assert [position % CELLS for position in positions] == list(range(len(positions)))
    assert set(range(ring.oldest_seen(length), length)) <= set(positions.tolist())
    search = len(positions) % CELLS
    while search < len(positions) and length - positions[search] < WINDOW:
        search += 1
    assert search == length % CELLS
