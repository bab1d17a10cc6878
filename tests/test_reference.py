"""The reference against committed logits of transformers, and its own rules."""

from __future__ import annotations

from pathlib import Path

import golden_models
import msgspec
import numpy as np
import pytest
from models import LLAMA3, make_llama

from edgepack.decoder import Attention, Decoder, LinearScaling
from edgepack.errors import UsageError
from edgepack_packager import families, reference, weights
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.weights import Float32, Weights

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize("name", golden_models.params())
def test_golden_logits(name: str, tmp_path: Path) -> None:
    folder = golden_models.folder(name, tmp_path)
    golden = np.load(GOLDEN / f"{name}.npz")
    assert golden["weights"] == golden_models.digest(folder), "the model changed: run tests/golden/make.py"

    with open_checkpoint(folder) as checkpoint:
        found = reference.logits(families.open_model(checkpoint), golden["ids"].tolist())

    assert len(found) >= 256
    assert golden_models.nmse(found[:, golden["columns"]], golden["logits"]) <= 1e-10


class Changed:
    """Other weights under a decoder with some facts changed, or with one tensor in place of another."""

    def __init__(self, inner: Weights, decoder: Decoder, swap: tuple[str, str] | None = None) -> None:
        self.decoder = decoder
        self.dtype = inner.dtype
        self._inner = inner
        self._swap = dict([swap, swap[::-1]]) if swap else {}

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._inner.rows(self._swap.get(name, name), start, stop)


FAULTS = {
    "rope scaling dropped": {"rope": {"scaling": None}},
    "rope scaling of another kind": {"rope": {"scaling": LinearScaling(8.0)}},
    "another theta": {"rope": {"theta": 10000.0}},
    "another epsilon": {"norm_eps": 1e-3},
    "gate and up swapped": {"swap": ("layers.0.mlp.gate", "layers.0.mlp.up")},
    "keys and values swapped": {"swap": ("layers.1.attention.k", "layers.1.attention.v")},
    "a layer less": {"n_layers": 3},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_golden_logits_hear_a_fault(fault: str, tmp_path: Path) -> None:
    facts = dict(FAULTS[fault])
    swap = facts.pop("swap", None)
    folder = golden_models.folder("sharded-llama3", tmp_path)
    golden = np.load(GOLDEN / "sharded-llama3.npz")
    with open_checkpoint(folder) as checkpoint:
        model = families.open_model(checkpoint)
        if "rope" in facts:
            rope = msgspec.structs.replace(model.decoder.ropes[0], **facts.pop("rope"))
            facts["pattern"] = (Attention(rope),)
        wrong = Changed(model, msgspec.structs.replace(model.decoder, **facts), swap)
        found = reference.logits(wrong, golden["ids"].tolist())

    assert golden_models.nmse(found[:, golden["columns"]], golden["logits"]) > 1e-8


def test_a_position_sees_only_those_before_it(tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, rope=LLAMA3)) as checkpoint:
        model = families.open_model(checkpoint)
        whole = reference.logits(model, [5, 9, 300, 7, 7, 1])
        part = reference.logits(model, [5, 9, 300])
    np.testing.assert_allclose(part, whole[:3], rtol=0, atol=1e-4)


def test_small_blocks_give_the_same_logits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(make_llama(tmp_path, tied=False)) as checkpoint:
        model = families.open_model(checkpoint)
        whole = reference.logits(model, range(40))
        monkeypatch.setattr(weights, "BLOCK_ELEMENTS", 1000)
        blocks = reference.logits(model, range(40))
    assert golden_models.nmse(blocks, whole) < 1e-12


def test_progress_is_told_of_every_layer(tmp_path: Path) -> None:
    calls: list[None] = []
    with open_checkpoint(make_llama(tmp_path, layers=3)) as checkpoint:
        reference.logits(families.open_model(checkpoint), [1, 2], progress=lambda: calls.append(None))
    assert len(calls) == 3


@pytest.mark.parametrize("ids", [[], [-1], [384], [0, 1000]])
def test_ids_outside_the_embedding_are_refused(ids: list[int], tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path)) as checkpoint, pytest.raises(UsageError, match="from 0 to 383"):
        reference.logits(families.open_model(checkpoint), ids)
