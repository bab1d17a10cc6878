"""Snapshots of a session: what is restored goes on bit for bit; what is damaged or of another model is refused."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import numpy as np
import pytest
from decoders import LFM2, RandomWeights, describe
from gguf_decoders import GEMMA2, GEMMA3, QWEN35, WINDOW
from variants import token_ids

from edgepack import runtime, snapshot
from edgepack.errors import EngineError
from edgepack.fake import FakeRuntime
from edgepack.runtime import Options, Runtime, Session, Snapshots
from edgepack_packager import targets
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

ENGINES = ("fake", "gguf", "mlx", "onnx")
CONTEXT = 96
DECODERS = {
    "llama": describe(),
    "gemma2": describe(**GEMMA2),
    "gemma3": describe(**GEMMA3, wide=True),  # a 16-bit cache of mlx is then bfloat16
    "another": describe(n_vocab=144, n_kv_heads=1, n_layers=3, tied=False),
    "retuned": describe(norm_eps=1e-6),
    "wide heads": describe(head_dim=64),
    "hybrid": describe(**LFM2),
    "delta rules": describe(**QWEN35),
}
IDS = token_ids(DECODERS["llama"], CONTEXT)


class Snapshotting(Session, Snapshots):
    """What every session here is."""


Open = Callable[..., Snapshotting]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an f32 variant of each decoder for each engine."""
    folder = tmp_path_factory.mktemp("snapshots")
    for name, decoder in DECODERS.items():
        requests = [Request(targets.find(target), "f32", "f32") for target in targets.names()]
        write(RandomWeights(decoder), requests, folder / name, Model("tiny", decoder, "f32"))
    return folder


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Runtime:
    return FakeRuntime() if request.param == "fake" else runtime.find(request.param)


@pytest.fixture
def opening(engine: Runtime, variants: Path) -> Iterator[Open]:
    opened: list[Session] = []

    def open_session(name: str = "llama", **changes: object) -> Snapshotting:
        options = {"context": CONTEXT, "threads": 1, "kv_cache": "f32", "chunk": 16} | changes
        place = variants / name / f"{engine.name}-f32"
        opened.append(engine.open(place, DECODERS[name], Options(**options)))  # type: ignore[arg-type]
        assert isinstance(opened[-1], Snapshots)
        return opened[-1]  # type: ignore[return-value]

    yield open_session
    for session in opened:
        session.close()


def decode(session: Session, ids: list[int]) -> Float32:
    """The logits of ids that are evaluated one by one."""
    return np.stack([session.forward([token]) for token in ids])


def resealed(session: Snapshotting, length: int, payload: bytes) -> bytes:
    """A snapshot whose envelope is right for the session, around any payload."""
    size = int.from_bytes(session.snapshot()[16:20], "little")
    header = msgspec.json.decode(session.snapshot()[20 : 20 + size])
    return snapshot.seal(header["facts"], length, [payload])


@pytest.mark.parametrize(
    ("name", "kv_cache"),
    [(name, kind) for name in ("llama", "gemma2", "gemma3") for kind in ("f32", "f16")]
    + [("wide heads", "q8"), ("hybrid", "f32"), ("delta rules", "f32")],
)
def test_what_is_restored_goes_on_bit_for_bit(name: str, kv_cache: str, engine: Runtime, opening: Open) -> None:
    if (engine.name, kv_cache) in {("onnx", "f16"), ("onnx", "q8"), ("mlx", "q8")}:
        pytest.skip(f"{engine.name} has no KV cache of {kv_cache} here")
    session = opening(name, kv_cache=kv_cache)
    session.forward(IDS[:40])
    decode(session, IDS[40:50])
    state = session.snapshot()
    assert session.length == 50 > 2 * WINDOW  # also what has left a window is kept
    expected = decode(session, IDS[50:54]), session.forward_all(IDS[54:90])
    session.rewind(10)
    rewound = session.forward_all(IDS[60:80])

    fresh = opening(name, kv_cache=kv_cache)
    fresh.forward(IDS[20:95])
    for again in (session, fresh, opening(name, kv_cache=kv_cache, context=90)):
        for _ in range(2):
            again.restore(state)
            assert again.length == 50
            assert again.snapshot() == state
            assert np.array_equal(decode(again, IDS[50:54]), expected[0])
            assert np.array_equal(again.forward_all(IDS[54:90]), expected[1])
            again.rewind(10)
            assert np.array_equal(again.forward_all(IDS[60:80]), rewound)


def test_a_snapshot_is_compact_and_changes_nothing(opening: Open) -> None:
    session, same = opening(), opening()
    empty = len(session.snapshot())
    for each in (session, same):
        each.forward(IDS[:40])
    sizes = [len(session.snapshot()) for _ in range(3)]
    assert sizes[0] - empty <= 40 * (4 * DECODERS["llama"].kv_values_per_token + 16)
    assert len(set(sizes)) == 1
    assert np.array_equal(session.forward(IDS[40:50]), same.forward(IDS[40:50]))


def test_an_empty_cache_is_a_snapshot_too(opening: Open) -> None:
    session = opening()
    empty, expected = session.snapshot(), session.forward_all(IDS[:20])
    session.restore(empty)
    assert session.length == 0
    assert np.array_equal(session.forward_all(IDS[:20]), expected)


def test_the_fake_goes_on_with_its_script() -> None:
    decoder = DECODERS["llama"]
    session = FakeRuntime([3, 5, 8]).open(Path(), decoder, Options(CONTEXT, 1, "f32"))
    session.forward([1, 2])
    session.forward([3])
    state = session.snapshot()
    for _ in range(2):
        assert session.forward([5]).argmax() == 8
        session.restore(state)
    with pytest.raises(ValueError, match="script"):
        FakeRuntime().open(Path(), decoder, Options(CONTEXT, 1, "f32")).restore(state)


def test_a_rewound_session_forgets_in_its_snapshot(opening: Open) -> None:
    session = opening()
    session.forward(IDS[:16])
    short = session.snapshot()
    session.forward(IDS[16:48])
    session.rewind(16)
    assert session.snapshot() == short


def test_a_snapshot_of_something_else_is_refused(engine: Runtime, opening: Open) -> None:
    session = opening()
    session.forward(IDS[:20])
    foreign = {"shape": opening("another"), "decoder": opening("retuned")}
    if engine.name != "onnx":
        foreign["KV cache"] = opening(kv_cache="f16")
    for fact, other in foreign.items():
        other.forward(IDS[:10])
        with pytest.raises(ValueError, match=f"The {fact} of the snapshot is .*, that of this session"):
            session.restore(other.snapshot())
    engines = snapshot.facts("an engine of tomorrow", DECODERS["llama"], "f32")
    with pytest.raises(ValueError, match="The engine of the snapshot is an engine of tomorrow"):
        session.restore(snapshot.seal(engines, 0, []))
    goes_on(session, opening())


def test_a_snapshot_that_is_longer_than_the_context_is_refused(opening: Open) -> None:
    long, session = opening(), opening(context=40)
    long.forward(IDS[:41])
    session.forward(IDS[:20])
    with pytest.raises(ValueError, match="41 tokens, more than the context of 40"):
        session.restore(long.snapshot())
    goes_on(session, opening())
    long.rewind(40)
    session.restore(long.snapshot())
    assert session.length == 40


def test_a_damaged_snapshot_is_refused_wherever_the_damage_is(opening: Open) -> None:
    session = opening()
    session.forward(IDS[:20])
    state = session.snapshot()
    places = [*range(64), *np.random.default_rng(1).integers(64, len(state), 64), len(state) - 1]
    for place in places:
        damaged = bytearray(state)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ValueError, match="snapshot"):
            session.restore(bytes(damaged))
    for size in (0, 1, 15, 19, 20, 40, len(state) // 2, len(state) - 1):
        with pytest.raises(ValueError, match="snapshot"):
            session.restore(state[:size])
    with pytest.raises(ValueError, match="snapshot"):
        session.restore(state + b"\0")
    goes_on(session, opening())


def goes_on(session: Session, fresh: Session) -> None:
    """Twenty tokens are still in the cache of the session, as they were."""
    fresh.forward(IDS[:20])
    assert session.length == 20
    assert np.array_equal(decode(session, IDS[20:24]), decode(fresh, IDS[20:24]))


@pytest.mark.parametrize("length", [19, 20, 21])
def test_a_payload_that_the_engine_cannot_read_leaves_the_cache_as_it_was_or_empty(length: int, opening: Open) -> None:
    session, whole = opening("gemma2"), opening("gemma2")
    session.forward(IDS[:20])
    payload = bytes(snapshot.unseal(session.snapshot(), {}, CONTEXT)[1])
    wrong = [payload[:-4], payload + bytes(4), b"", payload[: len(payload) // 2]]
    for broken in [*wrong, payload] if length != 20 else wrong:
        with pytest.raises(ValueError):  # noqa: PT011 - what reads it says what is wrong
            session.restore(resealed(session, length, broken))
        assert session.length in (0, 20)
        session.rewind(0)
        whole.rewind(0)
        assert np.array_equal(session.forward_all(IDS[:20]), whole.forward_all(IDS[:20]))


def test_a_cancelled_forward_leaves_a_cache_that_can_be_taken(opening: Open) -> None:
    session = opening()
    session.forward(IDS[:20])
    session.cancel()
    state = session.snapshot()
    session.forward(IDS[20:40])
    session.cancel()
    session.restore(state)
    goes_on(session, opening())


def test_snapshots_belong_to_the_sessions_thread_and_end_with_it(opening: Open) -> None:
    session = opening()
    session.forward(IDS[:20])
    state = session.snapshot()
    errors: list[EngineError] = []

    def work() -> None:
        for call in (session.snapshot, lambda: session.restore(state)):
            try:
                call()
            except EngineError as error:
                errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 2
    goes_on(session, opening())
    session.close()
    for call in (session.snapshot, lambda: session.restore(state)):
        with pytest.raises(EngineError, match="closed"):
            call()
