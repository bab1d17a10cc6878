"""Layers that read the keys of others: sessions go on, go back and come back as those of other models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from decoders import RandomWeights
from gguf_decoders import WINDOW, gemma4
from variants import token_ids

from edgepack import runtime
from edgepack.runtime import Options, Session, Snapshots
from edgepack_packager import targets
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write
from edgepack_runtimes.gguf.session import GgufSession

MODELS = {"gemma4": gemma4(head_dims=(32, 64)), "fewer share": gemma4("sfsf f", head_dims=(32, 64))}
"""Heads that fill blocks of 32, so that a cache of q8 holds them too."""
IDS = token_ids(MODELS["gemma4"], 96)

Open = Callable[..., Session]


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared")
    for name, decoder in MODELS.items():
        request = Request(targets.find("gguf"), "f32", "f32")
        write(RandomWeights(decoder), [request], folder / name, Model("tiny", decoder, "f32"))
    return folder


@pytest.fixture
def opening(variants: Path) -> Iterator[Open]:
    opened: list[Session] = []

    def open_session(name: str = "gemma4", kv_cache: str = "f32") -> Session:
        options = Options(context=96, threads=1, kv_cache=kv_cache, chunk=16)  # type: ignore[arg-type]
        opened.append(runtime.find("gguf").open(variants / name / "gguf-f32", MODELS[name], options))
        return opened[-1]

    yield open_session
    for session in opened:
        session.close()


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "q8"])
def test_what_is_restored_goes_on_bit_for_bit(kv_cache: str, opening: Open) -> None:
    session, fresh = opening(kv_cache=kv_cache), opening(kv_cache=kv_cache)
    assert isinstance(session, Snapshots)
    assert isinstance(fresh, Snapshots)
    session.forward(IDS[: 2 * WINDOW])
    state = session.snapshot()
    expected = session.forward_all(IDS[2 * WINDOW : 90])
    session.rewind(10)
    rewound = session.forward_all(IDS[60:80])
    fresh.forward(IDS[20:95])
    for again in (session, fresh):
        again.restore(state)
        assert again.snapshot() == state
        assert np.array_equal(again.forward_all(IDS[2 * WINDOW : 90]), expected)
        again.rewind(10)
        assert np.array_equal(again.forward_all(IDS[60:80]), rewound)


def test_another_number_of_layers_that_share_is_another_model(opening: Open) -> None:
    one, other = opening(), opening("fewer share")
    assert isinstance(one, Snapshots)
    assert isinstance(other, Snapshots)
    one.forward(IDS[:20])
    with pytest.raises(ValueError, match="snapshot"):
        other.restore(one.snapshot())
    assert other.length == 0


@pytest.mark.parametrize("kv_cache", ["f32", "f16", "q8"])
def test_cells_are_of_the_layers_with_keys_alone(kv_cache: str, opening: Open) -> None:
    """A state that is written whole has a row for each token of each of them, and of no other."""
    session = opening(kv_cache=kv_cache)
    assert isinstance(session, GgufSession)
    session.forward(IDS[:20])
    before = len(session.snapshot())
    session.forward(IDS[20:60])
    values = MODELS["gemma4"].kv_values_per_token
    assert values == 2 * (2 * 32 + 2 * 64) * 2
    bytes_of = {"f32": 4.0, "f16": 2.0, "q8": 34 / 32}[kv_cache]
    assert len(session.snapshot()) - before == pytest.approx(40 * (bytes_of * values + 2 * 12), abs=16)
