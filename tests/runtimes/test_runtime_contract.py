"""One contract for every runtime: the seam's promises, on each engine and on the fake that ships in the SDK."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import exported_models
import numpy as np
import pytest
from cancelling import cancelling
from decoders import RandomWeights, describe
from gguf_decoders import GEMMA3, WINDOW
from models import LLAMA3, make_llama

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import detect
from edgepack.errors import Cancelled, EngineError, PromptTooLongError, UsageError
from edgepack.fake import FakeRuntime
from edgepack.isolation.isolate import IsolatedRuntime
from edgepack.runtime import Options, Runtime, Session
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

ENGINES = ("fake", "gguf", "gguf isolated", "mlx", "mlx exported", "onnx", "onnx exported", "onnx exported isolated")
CONTEXT = 96
WINDOWED, LONG = describe(context=640, wide=True, **GEMMA3), 600
LONG_IDS = [int(i) for i in np.random.default_rng(4).integers(0, WINDOWED.n_vocab, LONG)]
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 384, CONTEXT)]

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    """A folder with an f32 variant for each engine, and their decoder."""
    folder = tmp_path_factory.mktemp("contract")
    with open_checkpoint(make_llama(folder / "source", seed=5, hidden=64, rope=LLAMA3)) as checkpoint:
        weights = families.open_model(checkpoint)
        requests = [Request(targets.find(name), "f32", "f32") for name in targets.names()]
        write(weights, requests, folder, Model("tiny", weights.decoder, weights.dtype))
        return folder, weights.decoder


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Decoder]]:
    """For each engine a folder with a variant as an exporter writes it, and its decoder."""
    onnx, mlx = tmp_path_factory.mktemp("onnx"), tmp_path_factory.mktemp("mlx")
    exported_models.write_graph(onnx, exported_models.weights())
    return {"onnx": (onnx, exported_models.decoder(onnx)), "mlx": (mlx, exported_models.write_mlx(mlx))}


@pytest.fixture(params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def engine(kind: str) -> Runtime:
    name, *how = kind.split()
    if "isolated" in how:
        return IsolatedRuntime(name)
    return FakeRuntime() if name == "fake" else runtime.find(name)


@pytest.fixture
def opening(
    kind: str, engine: Runtime, variants: tuple[Path, Decoder], exported: dict[str, tuple[Path, Decoder]]
) -> Iterator[Open]:
    variant, decoder = (
        exported[engine.name] if "exported" in kind else (variants[0] / f"{engine.name}-f32", variants[1])
    )
    opened: list[Session] = []

    def open_session(**changes: object) -> Session:
        options = {"context": CONTEXT, "threads": 1, "kv_cache": "f32", "chunk": 16} | changes
        opened.append(engine.open(variant, decoder, Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


def test_the_engine_says_what_it_is(engine: Runtime) -> None:
    support = engine.probe(detect())
    assert support.devices
    assert support.version
    assert "f32" in support.kv_caches


def test_forward_is_the_last_row_of_forward_all(opening: Open) -> None:
    session = opening()
    every = session.forward_all(IDS[:40])
    assert every.shape == (40, 384)
    assert every.dtype == np.float32
    session.rewind(0)
    last = session.forward(IDS[:40])
    assert last.shape == (384,)
    assert session.length == 40
    assert int(last.argmax()) == int(every[-1].argmax())
    np.testing.assert_allclose(last, every[-1], rtol=1e-4, atol=1e-4)


def test_the_way_a_sequence_is_split_does_not_matter(opening: Open) -> None:
    session = opening()
    whole = session.forward_all(IDS)
    for split in (1, 15, 16, 17, 95):
        session.rewind(0)
        parts = np.concatenate([session.forward_all(IDS[:split]), session.forward_all(IDS[split:])])
        np.testing.assert_allclose(parts, whole, rtol=1e-4, atol=1e-4)


def test_rewind_forgets_and_only_that(opening: Open) -> None:
    session = opening()
    first = session.forward_all(IDS[:30])
    session.forward_all(IDS[50:70])
    session.rewind(20)
    assert session.length == 20
    np.testing.assert_allclose(session.forward_all(IDS[20:30]), first[20:], rtol=1e-4, atol=1e-4)
    for length in (-1, 31):
        with pytest.raises(ValueError, match=r"\d"):
            session.rewind(length)
    assert session.length == 30


@pytest.fixture(scope="module")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an f32 variant, for each engine, of a model most of whose layers see 24 tokens."""
    folder = tmp_path_factory.mktemp("windowed")
    requests = [Request(targets.find(name), "f32", "f32") for name in targets.names()]
    write(RandomWeights(WINDOWED), requests, folder, Model("tiny", WINDOWED, "f32"))
    return folder


@pytest.fixture
def forgetful(kind: str, engine: Runtime, windowed: Path) -> Iterator[Open]:
    """Open sessions whose context is much longer than the window; the fake's too takes back less than it holds."""
    if "exported" in kind:
        pytest.skip("what an exporter wrote keeps every position")
    used = FakeRuntime(takes_back=WINDOW) if engine.name == "fake" else engine
    opened: list[Session] = []

    def open_session() -> Session:
        opened.append(used.open(windowed / f"{engine.name}-f32", WINDOWED, Options(LONG, 1, "f32", chunk=16)))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


def goes_on_from_what_it_keeps(session: Session, expected: Float32) -> None:
    """Take back more and more, and compare what follows with an evaluation from nothing."""
    for length, back in ((LONG, 1), (LONG - 40, 20), (LONG, WINDOW), (300, 250), (LONG, 250), (LONG, LONG - 50)):
        session.rewind(0)
        session.forward(LONG_IDS[:length])
        kept = session.rewind(length - back)
        assert kept == session.length <= length - back
        rest = session.forward_all(LONG_IDS[kept:LONG])
        np.testing.assert_allclose(rest, expected[kept:], rtol=2e-3, atol=2e-3)


def test_a_rewind_says_what_it_keeps(forgetful: Open) -> None:
    session = forgetful()
    goes_on_from_what_it_keeps(session, session.forward_all(LONG_IDS))


class Boasting:
    """A session that has lost everything at each rewind and claims to have kept it."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.forward, self.forward_all = session.forward, session.forward_all

    @property
    def length(self) -> int:
        return self._session.length

    def rewind(self, length: int) -> int:
        self._session.rewind(0)
        if length:
            self._session.forward([7] * length)
        return length


def test_a_claim_to_have_kept_what_is_lost_is_noticed(forgetful: Open) -> None:
    session = forgetful()
    expected = session.forward_all(LONG_IDS)
    with pytest.raises(AssertionError):
        goes_on_from_what_it_keeps(Boasting(session), expected)  # type: ignore[arg-type]


def test_guesses_can_be_taken_back_wherever_they_come(forgetful: Open) -> None:
    session = forgetful()
    expected = session.forward_all(LONG_IDS)
    session.rewind(0)
    for length in range(LONG - 8):
        session.forward([LONG_IDS[length], *[5] * 7])  # half of a chunk
        assert session.rewind(length + 1) == length + 1
    rest = session.forward_all(LONG_IDS[LONG - 8 :])
    np.testing.assert_allclose(rest, expected[-8:], rtol=2e-3, atol=2e-3)


def test_a_cancelled_prefill_leaves_what_can_be_gone_on_from(forgetful: Open) -> None:
    session = forgetful()
    expected = session.forward(LONG_IDS)
    session.rewind(0)
    session.forward(LONG_IDS[:300])
    with cancelling(session, 0.003), pytest.raises(Cancelled):
        for _ in range(100_000):
            session.forward(LONG_IDS[session.length :])
            session.rewind(300)
    assert session.length in (0, 300)
    np.testing.assert_allclose(session.forward(LONG_IDS[session.length :]), expected, rtol=2e-3, atol=2e-3)


def test_arrays_belong_to_the_caller(opening: Open) -> None:
    session = opening()
    kept = session.forward(IDS[:3])
    copy = kept.copy()
    session.forward(IDS[3:4])
    assert np.array_equal(kept, copy)
    kept[:] = 0


@pytest.mark.parametrize("ids", [[], [-1], [384], [1, 2**31]])
def test_wrong_ids_are_refused_before_anything_is_evaluated(ids: list[int], opening: Open) -> None:
    session = opening()
    session.forward(IDS[:5])
    for call in (session.forward, session.forward_all):
        with pytest.raises(ValueError, match=r"(?i)token|id"):
            call(ids)
    assert session.length == 5
    session.forward(IDS[5:6])


def test_the_context_is_a_limit_and_can_be_filled(opening: Open) -> None:
    session = opening(context=20)
    session.forward(IDS[:15])
    with pytest.raises(PromptTooLongError, match="20"):
        session.forward(IDS[15:21])
    assert session.length == 15
    session.forward(IDS[15:20])
    assert session.length == 20


def test_a_cancel_stops_a_prefill_and_the_session_goes_on(opening: Open) -> None:
    session = opening(chunk=1)
    expected = session.forward(IDS[:10])
    session.rewind(0)
    session.forward(IDS[:4])
    with cancelling(session), pytest.raises(Cancelled):
        for _ in range(100_000):  # a cancel between two calls must do nothing, one within a call must stop it
            session.forward(IDS[4:80])
            session.rewind(4)
    assert session.length == 4
    np.testing.assert_allclose(session.forward(IDS[4:10]), expected, rtol=1e-4, atol=1e-4)


def test_a_cancel_of_nothing_does_nothing(opening: Open) -> None:
    session = opening()
    session.cancel()
    assert session.forward(IDS[:3]).shape == (384,)


def test_closing_is_final_and_may_be_repeated(opening: Open) -> None:
    session = opening()
    session.forward(IDS[:2])
    session.close()
    session.close()
    with pytest.raises(EngineError):
        session.forward(IDS[:1])
    with pytest.raises(EngineError):
        session.rewind(0)


def test_another_thread_is_refused(opening: Open) -> None:
    session = opening()
    errors: list[BaseException] = []

    def work() -> None:
        try:
            session.forward(IDS[:2])
        except EngineError as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == 1
    assert session.forward(IDS[:2]).shape == (384,)


def test_two_sessions_do_not_disturb_each_other(opening: Open) -> None:
    one, two = opening(), opening()
    expected = one.forward(IDS[:20])
    one.rewind(10)
    two.forward(IDS[40:60])
    np.testing.assert_allclose(one.forward(IDS[10:20]), expected, rtol=1e-4, atol=1e-4)


def test_a_variant_that_is_not_there(engine: Runtime, variants: tuple[Path, Decoder], tmp_path: Path) -> None:
    if engine.name == "fake":
        pytest.skip("the fake reads no file")
    with pytest.raises(EngineError, match=str(tmp_path.name)):
        engine.open(tmp_path, variants[1], Options(CONTEXT, 1, "f32"))


@pytest.mark.parametrize("name", ["mlx", "onnx"])
def test_what_an_exporter_wrote_holds_one_text(name: str, exported: dict[str, tuple[Path, Decoder]]) -> None:
    variant, decoder = exported[name]
    with pytest.raises(UsageError, match="sequences is 2"):
        runtime.find(name).open(variant, decoder, Options(CONTEXT, 1, "f32", sequences=2))
