"""States of a model without a head, on each engine: the seam's promise of ``Hidden``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from embedding_models import MODELS, make_embedding
from variants import nmse

from edgepack import runtime
from edgepack.bundle.decoder import Decoder
from edgepack.errors import PromptTooLongError, UsageError
from edgepack.fake import FakeRuntime
from edgepack.isolation.isolate import IsolatedRuntime
from edgepack.runtime import Hidden, KvCache, Options, Session, Snapshots
from edgepack_packager import families, reference, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

ENGINES = ("fake", "gguf", "gguf isolated", "mlx", "onnx", "onnx isolated")
CONTEXT = 96
IDS = [int(i) for i in np.random.default_rng(3).integers(0, 384, CONTEXT)]
# ggml computes the angles of a rotation less exactly, see GgufTarget.nmse.
LIMIT = 1e-9

Variants = tuple[Path, Decoder, Float32]
Open = Callable[..., Session]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """A folder with an f32 variant for each engine, their decoder, and the reference's states of ``IDS``."""
    folder = tmp_path_factory.mktemp("hidden")
    with open_checkpoint(make_embedding(folder / "source")) as checkpoint:
        weights = families.open_model(checkpoint, headless=True)
        requests = [Request(targets.find(name), "f32", "f32") for name in targets.names()]
        write(weights, requests, folder, Model("tiny", weights.decoder, weights.dtype))
        return folder, weights.decoder, reference.hidden(weights, IDS)[0]


@pytest.fixture(params=ENGINES)
def opening(request: pytest.FixtureRequest, variants: Variants) -> Iterator[Open]:
    folder, decoder, _ = variants
    name, *how = str(request.param).split()
    engine = FakeRuntime() if name == "fake" else IsolatedRuntime(name) if how else runtime.find(name)
    opened: list[Session] = []

    def open_session(chunk: int = 16) -> Session:
        options = Options(context=CONTEXT, threads=1, kv_cache="f32", chunk=chunk)
        opened.append(engine.open(folder / f"{name}-f32", decoder, options))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


def test_states_from_anywhere_on(opening: Open, variants: Variants, request: pytest.FixtureRequest) -> None:
    session = opening()
    assert isinstance(session, Hidden)
    whole = session.hidden(IDS)
    assert (whole.shape, whole.dtype, session.length) == ((CONTEXT, 64), np.float32, CONTEXT)
    for first in (0, 1, 15, 16, 17, 31, 32, 33, CONTEXT - 1):
        assert session.rewind(0) == 0
        found = session.hidden(IDS, first)
        assert found.shape == (CONTEXT - first, 64)
        assert nmse(found, whole[first:]) <= LIMIT, first
    if "fake" not in request.node.name:
        assert nmse(whole, variants[2]) <= LIMIT


def test_states_go_on(opening: Open) -> None:
    session = opening()
    assert isinstance(session, Hidden)
    whole = session.hidden(IDS[:40])
    session.rewind(0)
    parts = [session.hidden(IDS[:7]), session.hidden(IDS[7:8]), session.hidden(IDS[8:40])]
    assert nmse(np.concatenate(parts), whole) <= LIMIT
    session.rewind(8)
    assert nmse(session.hidden(IDS[8:40], 20), whole[28:]) <= LIMIT


def test_what_is_refused_leaves_the_cache(opening: Open) -> None:
    session = opening()
    assert isinstance(session, Hidden)
    session.hidden(IDS[:5])
    for call in (session.forward, session.forward_all):
        with pytest.raises(UsageError, match="no logits"):
            call([1])
    for first in (-1, 3, 4):
        with pytest.raises(ValueError, match="states from index"):
            session.hidden([1, 2, 3], first)
    for ids in ([], [384], [-1]):
        with pytest.raises(ValueError, match="token id"):
            session.hidden(ids)
    with pytest.raises(PromptTooLongError):
        session.hidden(IDS)
    assert session.length == 5


WITHOUT_FAKE = [engine for engine in ENGINES if engine != "fake"]


@pytest.fixture(scope="module")
def at_once(tmp_path_factory: pytest.TempPathFactory) -> Variants:
    """The same of a model whose tokens see those after them."""
    folder = tmp_path_factory.mktemp("at-once")
    with open_checkpoint(MODELS["gemma"](folder / "source")) as checkpoint:
        weights = families.open_model(checkpoint, headless=True)
        requests = [Request(targets.find(name), "f32", "f32") for name in targets.names()]
        write(weights, requests, folder, Model("tiny", weights.decoder, weights.dtype))
        return folder, weights.decoder, reference.hidden(weights, IDS)[0]


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "q8"])
@pytest.mark.parametrize("engine", WITHOUT_FAKE)
def test_a_text_at_once(engine: str, kv_cache: KvCache, at_once: Variants) -> None:
    """A text is a step, however long a chunk is, and nothing of it is left; llama.cpp has no cache to be of a type."""
    folder, decoder, expected = at_once
    name, *how = engine.split()
    if kv_cache != "f32" and name != "gguf":
        pytest.skip("f32 is what the payload has")
    limit = 1e-6 if name == "gguf" else 1e-10  # ggml's gelu, see GgufTarget.nmse
    options = Options(context=CONTEXT, threads=1, kv_cache=kv_cache, chunk=16)
    with closing(
        (IsolatedRuntime(name) if how else runtime.find(name)).open(folder / f"{name}-f32", decoder, options)
    ) as session:
        assert isinstance(session, Hidden)
        whole = session.hidden(IDS)
        assert session.length == 0
        assert nmse(whole, expected) <= limit
        for first in (1, 16, 50, CONTEXT - 1):  # with no rewind between
            assert np.array_equal(session.hidden(IDS, first), whole[first:]), first
        short = session.hidden(IDS[:40])
        assert nmse(short, whole[:40]) > 1e-3  # what follows is seen
        with pytest.raises(PromptTooLongError):
            session.hidden([*IDS, 1])
        if isinstance(session, Snapshots):
            session.restore(session.snapshot())
        assert np.array_equal(session.hidden(IDS), whole)


@pytest.mark.parametrize("name", ["fake", "gguf", "mlx", "onnx"])
def test_a_text_at_a_time(name: str, variants: Variants) -> None:
    folder, decoder, _ = variants
    engine = FakeRuntime() if name == "fake" else runtime.find(name)
    with pytest.raises(UsageError, match="sequences is 2, and a model that embeds"):
        engine.open(folder / f"{name}-f32", decoder, Options(CONTEXT, 1, "f32", sequences=2))
