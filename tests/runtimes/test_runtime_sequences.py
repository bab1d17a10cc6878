"""One contract for sessions of several sequences, on each engine and on the fake: each is as if it were alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cancelling import cancelling
from decoders import LFM2, LFM3, RandomWeights, describe
from gguf_decoders import GLOBAL, LOCAL, OLMO2, QWEN35, gemma4
from models import LLAMA3, make_llama
from variants import nmse

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.errors import Cancelled, EngineError, PromptTooLongError
from edgepack.fake import FakeRuntime
from edgepack.isolation.isolate import IsolatedRuntime
from edgepack.runtime import Options, Runtime, Sequences, Session, Step
from edgepack_packager import families, reference, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.targets.onnx import OnnxTarget
from edgepack_packager.write import write

CONTEXT, COUNT, CHUNK = 96, 4, 16
DECODERS = {
    "windows": describe(context=CONTEXT, pattern=(LOCAL, LOCAL, LOCAL, GLOBAL), **OLMO2),
    "convolutions": describe(**LFM2),
    "delta rules": describe(**QWEN35),
    "windows between convolutions": describe(**LFM3),
    "shared keys": gemma4(),
}
NO_GGUF = {"windows between convolutions"}
CASES = ["fake", "gguf", "gguf isolated", "mlx", "onnx"]
IDS = [[int(i) for i in np.random.default_rng(seed).integers(0, 128, CONTEXT)] for seed in range(COUNT)]


class Parallel(Session, Sequences):
    """Both of what a session of several sequences is."""


Open = Callable[..., Parallel]
Near = Callable[[Float32, Float32], None]
Alone = Callable[[Sequence[int]], Float32]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Decoder]]:
    """A folder with an f32 variant of each model for each engine, and their decoders."""
    folder = tmp_path_factory.mktemp("sequences")
    decoders = dict(DECODERS)
    with open_checkpoint(make_llama(folder / "source", seed=5, hidden=64, rope=LLAMA3)) as checkpoint:
        weights = families.open_model(checkpoint)
        decoders["llama"] = weights.decoder
        for kind, decoder in decoders.items():
            names = [name for name in targets.names() if name != "gguf" or kind not in NO_GGUF]
            requests = [Request(targets.find(name), "f32", "f32") for name in names]
            source = weights if kind == "llama" else RandomWeights(decoder)
            write(source, requests, folder / kind, Model("tiny", decoder, "f32"))
    return folder, decoders


@pytest.fixture(params=CASES)
def engine(request: pytest.FixtureRequest) -> Runtime:
    name, *how = request.param.split()
    if how:
        return IsolatedRuntime(name)
    return FakeRuntime() if name == "fake" else runtime.find(name)


@pytest.fixture(params=["llama", *DECODERS])
def kind(request: pytest.FixtureRequest, engine: Runtime) -> str:
    if engine.name == "gguf" and request.param in NO_GGUF:
        pytest.skip("llama.cpp has no such graph")
    if engine.name == "fake" and request.param != "llama":
        pytest.skip("the fake has one kind of layer")
    if isinstance(engine, IsolatedRuntime) and request.param != "convolutions":
        pytest.skip("another process takes a second to start, and holds what its engine does")
    return str(request.param)


@pytest.fixture
def opening(kind: str, engine: Runtime, variants: tuple[Path, dict[str, Decoder]]) -> Iterator[Open]:
    folder, decoders = variants
    opened: list[Session] = []

    def open_session(**changes: object) -> Session:
        options = {"context": CONTEXT, "threads": 1, "kv_cache": "f32", "chunk": CHUNK, "sequences": COUNT} | changes
        place = folder / kind / f"{engine.name}-f32"
        opened.append(engine.open(place, decoders[kind], Options(**options)))  # type: ignore[arg-type]
        return opened[-1]

    yield open_session  # type: ignore[misc]
    for session in opened:
        session.close()


@pytest.fixture
def near(kind: str, engine: Runtime) -> Near:
    """Compare logits of the same tokens in other steps: an engine may round them otherwise."""
    # ggml reads GELU in a table of f16, whose steps make more of what is rounded otherwise: in one session, one text in
    # steps of one token has rows that are 1.5e-7 from those of chunks.
    limit = 1e-6 if engine.name == "gguf" and kind == "shared keys" else 1e-10

    def compare(found: Float32, expected: Float32) -> None:
        assert found.shape == expected.shape
        assert nmse(found, expected) <= limit

    return compare


@pytest.fixture(scope="module")
def singles() -> Iterator[dict[tuple[str, str], Session]]:
    """Sessions that hold one text, by the engine and the model, for as long as the tests of this module run."""
    opened: dict[tuple[str, str], Session] = {}
    yield opened
    for session in opened.values():
        session.close()


@pytest.fixture
def alone(
    kind: str,
    engine: Runtime,
    variants: tuple[Path, dict[str, Decoder]],
    singles: dict[tuple[str, str], Session],
) -> Alone:
    """Return the logits after each of some tokens, from a session that holds one text."""
    if (engine.name, kind) not in singles:
        folder, decoders = variants
        options = Options(CONTEXT, 1, "f32", CHUNK)
        found = FakeRuntime() if engine.name == "fake" else runtime.find(engine.name)
        session = found.open(folder / kind / f"{engine.name}-f32", decoders[kind], options)
        assert not isinstance(session, Sequences)
        singles[engine.name, kind] = session

    def logits(tokens: Sequence[int]) -> Float32:
        session = singles[engine.name, kind]
        session.rewind(0)
        return session.forward_all(tokens)

    return logits


def test_a_session_of_several_sequences_says_so(opening: Open) -> None:
    session = opening()
    assert isinstance(session, Sequences)
    assert session.sequences == COUNT
    assert [session.length_of(each) for each in range(COUNT)] == [0] * COUNT


def test_ragged_batches_are_as_the_same_steps_one_after_another(opening: Open, alone: Alone, near: Near) -> None:
    session, found = opening(), dict[int, list[Float32]]({each: [] for each in range(COUNT)})
    sizes = {0: [16, 1, 1, 1, 5, 1], 1: [3, 1, 16, 1, 1], 2: [1, 1, 1, 1, 1, 1], 3: [7, 16, 1]}
    for turn in range(6):
        steps = []
        for each, its in sizes.items():
            if turn < len(its):
                start = session.length_of(each)
                steps.append(Step(each, IDS[each][start : start + its[turn]], every=turn % 2 == 0))
        steps = steps[turn % len(steps) :] + steps[: turn % len(steps)]  # their order is the caller's
        for step, rows in zip(steps, session.forward_batch(steps), strict=True):
            assert rows.dtype == np.float32
            assert rows.ndim == (2 if step.every else 1)
            found[step.sequence].append(rows)
    for each, its in sizes.items():
        expected, start = alone(IDS[each][: sum(its)]), 0
        assert session.length_of(each) == sum(its)
        for turn, size in enumerate(its):
            rows = expected[start : start + size]
            near(found[each][turn], rows if turn % 2 == 0 else rows[-1])
            start += size


def test_the_calls_of_one_text_are_those_of_sequence_0(opening: Open, alone: Alone, near: Near) -> None:
    session, expected = opening(), alone(IDS[0])
    session.forward_batch([Step(each, IDS[each][:9]) for each in range(1, COUNT)])
    near(session.forward_all(IDS[0][:40]), expected[:40])
    assert session.length == session.length_of(0) == 40
    near(session.forward(IDS[0][40:80]), expected[79])
    kept = session.rewind(70)
    assert kept == session.length <= 70
    near(session.forward_all(IDS[0][kept:]), expected[kept:])
    assert [session.length_of(each) for each in range(COUNT)] == [CONTEXT, 9, 9, 9]


@pytest.mark.parametrize("busy", [(2,), (0, 2), (1, 3), (0, 3)])
def test_sequences_that_rest_are_left_as_they_are(
    busy: tuple[int, ...], opening: Open, alone: Alone, near: Near
) -> None:
    session = opening()
    others = [each for each in range(COUNT) if each not in busy]
    session.forward_batch([Step(each, IDS[each][:10]) for each in others])
    for turn in range(30):
        session.forward_batch([Step(each, [IDS[each][turn]]) for each in busy])
    assert [session.length_of(each) for each in others] == [10] * len(others)
    after = session.forward_batch([Step(each, IDS[each][10 : 10 + each + 1], every=True) for each in others])
    for each, rows in zip(others, after, strict=True):
        near(rows, alone(IDS[each][: 10 + each + 1])[10:])
    for each in busy:
        near(session.forward_batch([Step(each, IDS[each][30:33])])[0], alone(IDS[each][:33])[-1])


def test_full_sequences_keep_their_last_token_beside_others(opening: Open, alone: Alone, near: Near) -> None:
    context = 24
    session = opening(context=context)
    for each in (0, 2):
        for start in range(0, context, 8):
            session.forward_batch([Step(each, IDS[each][start : start + 8])])
    with pytest.raises(PromptTooLongError, match=str(context)):
        session.forward_batch([Step(1, IDS[1][:3]), Step(0, IDS[0][:1])])
    assert [session.length_of(each) for each in range(COUNT)] == [context, 0, context, 0]
    for token in range(5):
        session.forward_batch([Step(3, [IDS[3][token]]), Step(1, [IDS[1][token]])])
    for each in (0, 2):
        kept = session.rewind_sequence(each, context - 1)
        expected = alone(IDS[each][:context])
        for start in range(kept, context, CHUNK):
            step = Step(each, IDS[each][start : min(start + CHUNK, context)], every=True)
            near(session.forward_batch([step])[0], expected[start : start + CHUNK])


def test_a_rewind_forgets_of_one_sequence(opening: Open, alone: Alone, near: Near) -> None:
    session = opening()
    for start in (0, CHUNK):
        session.forward_batch([Step(each, IDS[each][start : start + CHUNK]) for each in range(COUNT)])
    kept = session.rewind_sequence(2, 20)
    assert kept == session.length_of(2) <= 20
    assert [session.length_of(each) for each in (0, 1, 3)] == [32] * 3
    steps = [Step(2, IDS[1][kept : kept + CHUNK], every=True), Step(1, IDS[1][32:40], every=True)]
    changed, other = session.forward_batch(steps)
    near(changed, alone([*IDS[2][:kept], *IDS[1][kept : kept + CHUNK]])[kept:])
    near(other, alone(IDS[1][:40])[32:])
    for length in (-1, kept + CHUNK + 1):
        with pytest.raises(ValueError, match=r"\d"):
            session.rewind_sequence(2, length)
    assert session.rewind_sequence(2, 0) == session.length_of(2) == 0


def test_guesses_are_taken_back(opening: Open, alone: Alone, near: Near) -> None:
    session = opening()
    session.forward_batch([Step(1, IDS[1][:CHUNK]), Step(3, IDS[3][:4])])
    session.forward_batch([Step(1, [IDS[1][CHUNK]])])
    session.forward_batch([Step(1, [IDS[1][CHUNK + 1], 5, 6, 7], every=True), Step(3, [IDS[3][4]])])
    kept = session.rewind_sequence(1, CHUNK + 2)
    assert kept in (CHUNK + 1, CHUNK + 2)
    (rows,) = session.forward_batch([Step(1, IDS[1][kept : kept + 3], every=True)])
    near(rows, alone(IDS[1][: kept + 3])[kept:])


@pytest.mark.parametrize(("source", "target"), [(0, 1), (2, 0), (1, 3)])
def test_a_copy_is_as_if_its_tokens_had_been_evaluated(
    source: int, target: int, opening: Open, alone: Alone, near: Near
) -> None:
    session = opening()
    session.forward_batch([Step(target, IDS[target][:5])])
    for start in (0, CHUNK):
        session.forward_batch([Step(source, IDS[source][start : start + CHUNK])])
    assert session.copy(source, target, 2 * CHUNK) == session.length_of(target) == 2 * CHUNK
    mine, its = [*IDS[source][:32], *IDS[target][:6]], IDS[source][:40]
    rows = session.forward_batch([Step(target, mine[32:], every=True), Step(source, its[32:], every=True)])
    near(rows[0], alone(mine)[32:])
    near(rows[1], alone(its)[32:])
    assert session.length_of(source) == 40
    rows = session.forward_batch([Step(source, IDS[source][40:42]), Step(target, [7, 8, 9])])  # and each goes its way
    near(rows[0], alone(IDS[source][:42])[-1])
    near(rows[1], alone([*mine, 7, 8, 9])[-1])


def test_a_part_is_copied_as_far_as_it_can_be(opening: Open, alone: Alone, near: Near) -> None:
    session = opening()
    for start in (0, CHUNK, 2 * CHUNK):
        session.forward_batch([Step(0, IDS[0][start : start + CHUNK])])
    kept = session.copy(0, 2, 40)
    assert kept == session.length_of(2) <= 40
    assert session.length_of(0) == 48
    if kept != 40:  # of layers with a state: where it was marked
        assert kept == 32
    rows = session.forward_batch([Step(2, IDS[2][:9], every=True), Step(0, IDS[0][48:50], every=True)])
    near(rows[0], alone([*IDS[0][:kept], *IDS[2][:9]])[kept:])
    near(rows[1], alone(IDS[0][:50])[48:])
    assert session.copy(0, 2, 0) == session.length_of(2) == 0
    for source, target, length in [(0, 0, 3), (0, 2, 51), (0, 2, -1), (0, COUNT, 3), (-1, 2, 0)]:
        with pytest.raises(ValueError, match=r"\d"):
            session.copy(source, target, length)


WRONG = {
    "nothing": [],
    "no such sequence": [Step(COUNT, [1])],
    "a negative sequence": [Step(0, [1]), Step(-1, [1])],
    "a sequence twice": [Step(1, [1]), Step(1, [2])],
    "no token": [Step(0, [1]), Step(1, [])],
    "no such token": [Step(0, [1]), Step(1, [100_000])],
    "more than a chunk": [Step(0, [1]), Step(1, [1] * (CHUNK + 1))],
}


@pytest.mark.parametrize("steps", WRONG.values(), ids=WRONG)
def test_wrong_batches_are_refused_before_anything_is_evaluated(
    steps: list[Step], opening: Open, alone: Alone, near: Near
) -> None:
    session = opening()
    session.forward_batch([Step(0, IDS[0][:5]), Step(1, IDS[1][:5])])
    with pytest.raises(ValueError, match=r"step|sequence|token"):
        session.forward_batch(steps)
    assert [session.length_of(each) for each in range(COUNT)] == [5, 5, 0, 0]
    (row,) = session.forward_batch([Step(0, IDS[0][5:6])])
    near(row, alone(IDS[0][:6])[-1])


def test_a_cancel_leaves_every_sequence_as_it_was(opening: Open, alone: Alone, near: Near) -> None:
    session = opening()
    lengths = [16, 3, 0, 8]
    session.forward_batch([Step(each, IDS[each][:length]) for each, length in enumerate(lengths) if length])
    with cancelling(session), pytest.raises(Cancelled):
        for _ in range(100_000):  # a cancel between two calls must do nothing, one within a call must stop it
            starts = [session.length_of(each) for each in range(COUNT)]
            steps = [Step(each, IDS[each][start : start + 16]) for each, start in enumerate(starts)]
            session.forward_batch(steps)
            for each, length in enumerate(lengths):
                session.rewind_sequence(each, length)
    assert [session.length_of(each) for each in range(COUNT)] == starts
    rows = session.forward_batch([Step(each, IDS[each][start : start + 4]) for each, start in enumerate(starts)])
    for each, start in enumerate(starts):
        near(rows[each], alone(IDS[each][: start + 4])[-1])


def test_arrays_belong_to_the_caller(opening: Open) -> None:
    session = opening()
    kept = session.forward_batch([Step(0, [1, 2], every=True), Step(1, [3])])
    copies = [each.copy() for each in kept]
    session.forward_batch([Step(0, [4]), Step(1, [5])])
    assert all(np.array_equal(one, other) for one, other in zip(kept, copies, strict=True))
    for each in kept:
        each[:] = 0


def test_closed_and_from_another_thread(opening: Open) -> None:
    session, errors = opening(), list[EngineError]()
    calls = [
        lambda: session.forward_batch([Step(0, [1])]),
        lambda: session.rewind_sequence(0, 0),
        lambda: session.copy(0, 1, 0),
    ]

    def work() -> None:
        for call in calls:
            with pytest.raises(EngineError) as raised:
                call()
            errors.append(raised.value)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert len(errors) == len(calls)
    session.close()
    work()


@pytest.mark.parametrize("name", ["gguf", "onnx"])
def test_caches_of_8_bits(name: str, tmp_path: Path) -> None:
    decoder = describe(head_dim=32)
    weights = RandomWeights(decoder)
    target = targets.find(name)
    if isinstance(target, OnnxTarget):
        target = target.with_kv_cache("q8")
    model = Model("tiny", decoder, "f32", cache_scales=reference.cache_scales(weights, IDS[0]))
    write(weights, [Request(target, "f32", "f32")], tmp_path, model)
    (place,) = tmp_path.iterdir()
    options = Options(CONTEXT, 1, "q8", CHUNK)
    session: Any = runtime.find(name).open(place, decoder, replace(options, sequences=3))
    single = runtime.find(name).open(place, decoder, options)
    session.forward_batch([Step(0, IDS[0][:16]), Step(1, IDS[1][:3]), Step(2, IDS[2][:9])])
    assert session.copy(0, 1, 12) == 12
    for turn in range(4):
        rows = session.forward_batch([Step(each, [IDS[each][20 + turn]]) for each in range(3)])
    for each, start in enumerate([IDS[0][:16], IDS[0][:12], IDS[2][:9]]):
        expected = single.forward_all([*start, *IDS[each][20:24]])[-1]
        single.rewind(0)
        assert nmse(rows[each], expected) <= 1e-4  # a number between two levels may fall on either side
    session.close()
    single.close()
