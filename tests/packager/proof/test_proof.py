"""The proof's figures and gates; and that planted faults, one for each thing a converter may break, are caught."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import broken_runtimes
import msgspec
import numpy as np
import pytest
from decoders import Positions, changed
from msgspec.structs import replace

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Gate, Loss
from edgepack.errors import EngineError
from edgepack.runtime import KvCache
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import child, compare, engine, execution, loss, probe, structure, tensors
from edgepack_packager.proof.gates import Finding, gate, missed
from edgepack_packager.proof.probe import Probe
from edgepack_packager.targets import Model, Request, Written
from edgepack_packager.write import write

Change = Callable[[Weights, str, int, int], Float32]


def test_equal_logits_lose_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
    lost = loss.measure(logits, logits, Probe(tuple(range(8)), 4))
    assert lost == {part: Loss(4, 0, 0, 1, 0, 1, 0) for part in ("text", "random")}


def test_figures_follow_their_definitions() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    model = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    found = compare.positions(model, reference, [0, 1])
    first = 0.5 * math.log(2) - 0.25 * math.log(2)
    assert np.allclose(found.kl, [first, 0])
    assert found.same.tolist() == [0, 1]
    assert np.allclose(found.reference_surprise, [math.log(4)])
    assert np.allclose(found.surprise, [math.log(2)])
    lost = loss.measure(model, reference, Probe((0, 1), 2))
    (text,) = lost.values()
    assert math.isclose(text.kl, first / 2, rel_tol=1e-2)
    assert math.isclose(text.kl_error, first / 2, rel_tol=1e-2)  # of two values a and 0: half of a
    assert (text.top1, text.top1_error) == (0.5, 0.5)
    assert text.perplexity == 0.5


def test_a_loss_beyond_a_float_is_a_number_in_json() -> None:
    unlike = np.array([[1e4, -1e4], [0, 0], [0, 0]], np.float32)
    lost = loss.measure(-unlike, unlike, Probe((0, 0, 0), 0))
    assert msgspec.json.decode(msgspec.json.encode(lost)) == msgspec.to_builtins(lost)


def test_logits_of_another_length_are_no_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare.nmse(np.zeros((2, 3), np.float32), np.ones((3, 3), np.float32))


@pytest.mark.parametrize(("value", "holds", "limit", "verdict"), [(1, "<=", 1, True), (2, "<=", 1, False)])
def test_a_gate_holds_to_its_limit(value: float, holds: str, limit: float, verdict: bool) -> None:
    assert gate("g", value, holds, limit).passes is verdict  # type: ignore[arg-type]


def test_nan_passes_no_gate() -> None:
    assert not gate("g", math.nan, "<=", 1).passes
    assert not gate("g", math.nan, ">=", 0).passes


def test_every_missed_gate_is_named_with_its_figure_and_its_place() -> None:
    findings = [
        Finding(gate("fine", 0, "<=", 1)),
        Finding(gate("loss.kl", 0.75, "<=", 0.5)),
        Finding(gate("tensors.scale", 1.1, "<=", 1.01), "layers.0.mlp.up"),
    ]
    assert missed(findings) == [
        "loss.kl is 0.75, the limit is <= 0.5",
        "tensors.scale is 1.1 in layers.0.mlp.up, the limit is <= 1.01",
    ]


class Planted:
    """Weights with a fault: what a broken converter would write instead of the source."""

    def __init__(self, weights: Weights, decoder: Decoder, change: Change) -> None:
        self._weights, self._change = weights, change
        self.decoder, self.dtype = decoder, weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._change(self._weights, name, start, stop)


def true_rows(weights: Weights, name: str, start: int, stop: int) -> Float32:
    return weights.rows(name, start, stop)


def interleaved_heads(weights: Weights, name: str, start: int, stop: int) -> Float32:
    rows = weights.rows(name, start, stop)
    if not name.endswith((".attention.q", ".attention.k")):
        return rows
    heads = rows.reshape(-1, 2, weights.decoder.attentions[0].head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def swapped_gate_and_up(weights: Weights, name: str, start: int, stop: int) -> Float32:
    swap = {"gate": "up", "up": "gate"}
    stem, dot, leaf = name.rpartition(".")
    return weights.rows(f"{stem}{dot}{swap.get(leaf, leaf)}", start, stop)


def embedding_as_head(weights: Weights, name: str, start: int, stop: int) -> Float32:
    return weights.rows("embedding" if name == "head" else name, start, stop)


FAULTS: dict[str, tuple[dict[str, object], Change]] = {
    "dropped rope scaling": ({"scaling": None}, true_rows),
    "wrong epsilon": ({"norm_eps": 1e-6}, true_rows),
    "q and k not permuted": ({}, interleaved_heads),
    "gate and up swapped": ({}, swapped_gate_and_up),
    "the embedding as an untied head": ({}, embedding_as_head),
}


@pytest.fixture(scope="module")
def weights(sharded_llama: Path) -> Iterator[Weights]:
    with open_checkpoint(sharded_llama) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
@pytest.mark.parametrize("fault", FAULTS)
def test_structure_catches(
    fault: str, target: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields, change = FAULTS[fault]

    def broken_write(part: Weights, requests: Sequence[Request], folder: Path, model: Model) -> list[Written]:
        decoder = part.decoder
        if "scaling" in fields:
            decoder = changed(decoder, pattern=(Positions(replace(decoder.ropes[0], scaling=None)),))
        if "norm_eps" in fields:
            decoder = replace(decoder, norm_eps=fields["norm_eps"])
        return write(Planted(part, decoder, change), requests, folder, dataclasses.replace(model, decoder=decoder))

    monkeypatch.setattr(structure, "write", broken_write)
    ids = probe.make(weights.decoder, None).ids
    if fields and (target, fault) != ("onnx", "dropped rope scaling"):
        # Runtimes hold what a payload states against the manifest; an ONNX graph has its ropes as tables of numbers.
        (error,) = structure.prove([targets.find(target)], weights, ids, tmp_path).values()
        assert isinstance(error, EngineError)
        said = r"rope_scaling is|rms_norm_eps is|rope_freqs|rms_epsilon is|layers\.0\.attention\.norm\.output differs"
        assert re.search(said, error.message)
        return
    (found,) = structure.prove([targets.find(target)], weights, ids, tmp_path).values()
    assert isinstance(found, Gate)
    assert not found.passes, found


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
def test_structure_of_a_sound_model_holds(target: str, weights: Weights, tmp_path: Path) -> None:
    ids = probe.make(weights.decoder, None).ids
    (found,) = structure.prove([targets.find(target)], weights, ids, tmp_path).values()
    assert isinstance(found, Gate)
    assert found.passes, found
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
@pytest.mark.parametrize("quant", ["f16", "q8", "q4"])
def test_tensors_hold_and_a_row_that_does_not_is_named(
    target: str, quant: str, weights: Weights, tmp_path: Path
) -> None:
    chosen = targets.find(target)
    model = Model("sharded", weights.decoder, weights.dtype)
    request = Request(chosen, quant, chosen.scheme(quant, model))
    write(weights, [request], tmp_path, model)
    assert missed(tensors.prove(chosen, tmp_path / request.id, weights, lambda _: None).findings) == []

    folder = tmp_path / "swapped"
    write(Planted(weights, weights.decoder, swapped_gate_and_up), [request], folder, model)
    found = missed(tensors.prove(chosen, folder / request.id, weights, lambda _: None).findings)
    assert re.match(
        r"tensors\.row_error is 1\.\d+ in row \d+ of layers\.\d\.mlp\.(gate|up), the limit is <= 0\.", found[0]
    )


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
@pytest.mark.parametrize("quant", ["f32", "f16", "q8", "q4"])
def test_a_row_that_became_nan_on_its_way_is_found(target: str, quant: str, weights: Weights, tmp_path: Path) -> None:
    chosen = targets.find(target)
    model = Model("sharded", weights.decoder, weights.dtype)
    request = Request(chosen, quant, chosen.scheme(quant, model))
    write(weights, [request], tmp_path, model)
    data = max((tmp_path / request.id).iterdir(), key=lambda path: path.stat().st_size)
    with open(data, "r+b") as file:
        file.seek(data.stat().st_size // 2)
        file.write(b"\xff" * 4096)
    found = missed(tensors.prove(chosen, tmp_path / request.id, weights, lambda _: None).findings)
    assert re.match(r"tensors\.row_error is (nan|inf|[0-9.e+]+) in row \d+ of ", found[0])


def louder(part: str, by: float) -> Change:
    """Weights whose tensors of that name are multiplied."""

    def change(weights: Weights, name: str, start: int, stop: int) -> Float32:
        rows = weights.rows(name, start, stop)
        return rows * np.float32(by) if name.endswith(part) else rows

    return change


ENGINE_FAULTS: dict[str, Change] = {
    "gate and up swapped": swapped_gate_and_up,
    "q and k not permuted": interleaved_heads,
    "one layer louder": louder("layers.1.mlp.down", 1.1),
    "all values louder": louder("attention.v", 1.2),
}


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
@pytest.mark.parametrize("quant", ["f16", "q8", "q4"])
def test_an_engine_that_computes_another_model_is_heard_at_any_width(
    target: str, quant: str, weights: Weights, tmp_path: Path
) -> None:
    chosen = targets.find(target)
    model = Model("sharded", weights.decoder, weights.dtype)
    request = Request(chosen, quant, chosen.scheme(quant, model))
    ids = probe.make(weights.decoder, None).ids[: execution.TOKENS]
    kv_cache: KvCache = "f16" if target == "gguf" else "f32"
    write(weights, [request], tmp_path, model)
    for fault, change in {"none": true_rows, **ENGINE_FAULTS}.items():
        folder = tmp_path / fault
        write(Planted(weights, weights.decoder, change), [request], folder, model)
        logits = folder / "logits"
        engine.run(chosen.runtime, folder / request.id, weights.decoder, ids, kv_cache, logits)
        found = execution.prove(
            chosen, tmp_path / request.id, weights.decoder, ids, logits, kv_cache=kv_cache, scratch=tmp_path
        )
        assert found.passes is (fault == "none"), (fault, found)


def test_probe_is_deterministic_and_covers_text_and_random(weights: Weights) -> None:
    one = probe.make(weights.decoder, None)
    assert one == probe.make(weights.decoder, None)
    assert len(one.ids) == probe.TOKENS
    assert max(one.ids) < weights.decoder.n_vocab


def test_a_probe_that_ends_early_has_no_more_text_than_ids() -> None:
    whole = Probe((5, 6, 7, 8), text=3)
    assert [whole.first(count) for count in (2, 3, 9)] == [Probe((5, 6), 2), Probe((5, 6, 7), 3), whole]


def test_a_child_that_dies_is_a_sentence(weights: Weights, tmp_path: Path) -> None:
    job = child.Job("no-such-engine", str(tmp_path), weights.decoder, [1], "f32", str(tmp_path / "out"))
    with pytest.raises(EngineError, match="no-such-engine"):
        child.run(job)


def test_threads_of_an_engine_in_the_proof_wait_without_spinning(
    weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    broken_runtimes.register(tmp_path / "site", monkeypatch)
    job = child.Job("telling", str(tmp_path), weights.decoder, [1], "f32", str(tmp_path / "out"))
    with pytest.raises(EngineError, match="waits: passive"):
        child.run(job)


@pytest.mark.parametrize(
    ("runtime", "limit", "said"),
    [("open-aborts", 600.0, "SIGABRT: .*ENGINE_ASSERT"), ("open-hangs", 1.0, "within 1 s")],
)
def test_an_engine_that_breaks_in_the_proof_is_a_sentence(
    runtime: str, limit: float, said: str, weights: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken_runtimes.register(tmp_path / "site", monkeypatch)
    monkeypatch.setattr(child, "TIMEOUT_S", limit)
    job = child.Job(runtime, str(tmp_path), weights.decoder, [1], "f32", str(tmp_path / "out"))
    with pytest.raises(EngineError, match=said):
        child.run(job)
