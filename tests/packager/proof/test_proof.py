"""The proof's figures and gates; and that planted faults, one for each thing a converter may break, are caught."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace

from edgepack.bundle.decoder import Attention, Decoder
from edgepack.errors import EngineError, ProofError, SourceError
from edgepack_packager import families, reference, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import child, compare, loss, probe, structure, tensors
from edgepack_packager.proof.gates import enforce, gate
from edgepack_packager.proof.loss import limits
from edgepack_packager.targets import Model, Request, Written
from edgepack_packager.write import write

Change = Callable[[Weights, str, int, int], Float32]


def test_equal_logits_differ_in_nothing() -> None:
    logits = np.random.default_rng(1).normal(size=(8, 50)).astype(np.float32)
    same = compare.difference(logits, logits, list(range(8)), 4)
    assert (same.nmse, same.top1, same.perplexity_ratio) == (0.0, 1.0, 1.0)
    assert abs(same.kl) < 1e-12


def test_figures_follow_their_definitions() -> None:
    reference = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    model = np.log(np.array([[0.25, 0.5, 0.25], [0.1, 0.8, 0.1]], np.float32))
    figures = compare.difference(model, reference, [0, 1], 2)
    assert math.isclose(figures.kl, (0.5 * math.log(2) - 0.25 * math.log(2)) / 2, rel_tol=1e-6)
    assert figures.top1 == 0.5
    assert math.isclose(figures.reference_perplexity, 4, rel_tol=1e-6)
    assert math.isclose(figures.perplexity, 2, rel_tol=1e-6)
    assert math.isclose(figures.nmse, compare.nmse(model, reference))


def test_logits_of_another_length_are_no_match() -> None:
    with pytest.raises(ValueError, match="zip"):
        compare.nmse(np.zeros((2, 3), np.float32), np.ones((3, 3), np.float32))


@pytest.mark.parametrize(("value", "holds", "limit", "verdict"), [(1, "<=", 1, True), (2, "<=", 1, False)])
def test_a_gate_holds_to_its_limit(value: float, holds: str, limit: float, verdict: bool) -> None:
    assert gate("g", value, holds, limit).passes is verdict  # type: ignore[arg-type]


def test_nan_passes_no_gate() -> None:
    assert not gate("g", math.nan, "<=", 1).passes
    assert not gate("g", math.nan, ">=", 0).passes


def test_a_failed_gate_is_named_with_its_figure() -> None:
    with pytest.raises(ProofError, match=r"gguf-q4_0 failed the proof: loss\.kl is 0\.75, the limit is <= 0\.5"):
        enforce("gguf-q4_0", [gate("fine", 0, "<=", 1), gate("loss.kl", 0.75, "<=", 0.5)], "hint")


def test_fewer_bits_never_have_tighter_limits() -> None:
    widths = [limits(bits) for bits in (16, 8, 6, 4)]
    assert [limit.kl for limit in widths] == sorted(limit.kl for limit in widths)


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
    heads = rows.reshape(-1, 2, weights.decoder.head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


def swapped_gate_and_up(weights: Weights, name: str, start: int, stop: int) -> Float32:
    swap = {"gate": "up", "up": "gate"}
    stem, dot, leaf = name.rpartition(".")
    return weights.rows(f"{stem}{dot}{swap.get(leaf, leaf)}", start, stop)


def nan_row(weights: Weights, name: str, start: int, stop: int) -> Float32:
    rows = weights.rows(name, start, stop).copy()
    if name == "layers.1.mlp.down":
        rows[3] = np.nan
    return rows


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
            decoder = replace(decoder, pattern=(Attention(replace(decoder.ropes[0], scaling=None)),))
        if "norm_eps" in fields:
            decoder = replace(decoder, norm_eps=fields["norm_eps"])
        return write(Planted(part, decoder, change), requests, folder, dataclasses.replace(model, decoder=decoder))

    monkeypatch.setattr(structure, "write", broken_write)
    ids = probe.make(weights.decoder, None).ids
    if target in ("mlx", "gguf") and fields:
        # Their runtimes hold a payload's numbers against the manifest's, and refuse one that states others.
        with pytest.raises(EngineError, match=r"rope_scaling is|rms_norm_eps is|rope_freqs|rms_epsilon is"):
            structure.prove([targets.find(target)], weights, ids, tmp_path)
        return
    (found,) = structure.prove([targets.find(target)], weights, ids, tmp_path).values()
    assert not found.passes, found


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
def test_structure_of_a_sound_model_holds(target: str, weights: Weights, tmp_path: Path) -> None:
    ids = probe.make(weights.decoder, None).ids
    (found,) = structure.prove([targets.find(target)], weights, ids, tmp_path).values()
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
    assert tensors.prove(chosen, tmp_path / request.id, weights, lambda _: None).gate.passes

    folder = tmp_path / "swapped"
    write(Planted(weights, weights.decoder, swapped_gate_and_up), [request], folder, model)
    with pytest.raises(ProofError, match=r"row 0 of layers\.0\.mlp\.gate differs"):
        tensors.prove(chosen, folder / request.id, weights, lambda _: None)


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
    with pytest.raises(ProofError, match="failed the proof: row"):
        tensors.prove(chosen, tmp_path / request.id, weights, lambda _: None)


def test_a_nan_in_the_source_is_named_before_it_is_written(weights: Weights, tmp_path: Path) -> None:
    chosen = targets.find("onnx")
    model = Model("sharded", weights.decoder, weights.dtype)
    with pytest.raises(SourceError, match=r"row 3 of layers\.1\.mlp\.down"):
        write(Planted(weights, weights.decoder, nan_row), [Request(chosen, "f32", "f32")], tmp_path, model)


@pytest.mark.parametrize("target", ["gguf", "mlx", "onnx"])
@pytest.mark.parametrize("quant", ["f16", "q8", "q4"])
def test_the_loss_tells_a_sound_variant_from_a_broken_one(
    target: str, quant: str, weights: Weights, tmp_path: Path
) -> None:
    chosen = targets.find(target)
    model = Model("sharded", weights.decoder, weights.dtype)
    request = Request(chosen, quant, chosen.scheme(quant, model))
    ids = probe.make(weights.decoder, None)
    expected = reference.logits(weights, ids.ids)
    for source, sound in ((weights, True), (Planted(weights, weights.decoder, swapped_gate_and_up), False)):
        folder = tmp_path / str(sound)
        write(source, [request], folder, model)
        found = loss.prove(
            chosen,
            request.scheme,
            folder / request.id,
            weights.decoder,
            ids,
            expected,
            kv_cache="f32",
            scratch=tmp_path,
        )
        verdicts = {gate.name: gate.passes for gate in found.gates}
        # On random weights prose is as unlikely as anything, so its perplexity tells nothing here.
        assert verdicts == {"loss.kl": sound, "loss.top1": sound, "loss.perplexity_ratio": True}, found.gates


def test_probe_is_deterministic_and_covers_text_and_random(weights: Weights) -> None:
    one = probe.make(weights.decoder, None)
    assert one == probe.make(weights.decoder, None)
    assert len(one.ids) == probe.TOKENS
    assert max(one.ids) < weights.decoder.n_vocab


def test_a_child_that_dies_is_a_sentence(weights: Weights, tmp_path: Path) -> None:
    job = child.Job("no-such-engine", str(tmp_path), weights.decoder, [1], "f32", str(tmp_path / "out"))
    with pytest.raises(EngineError, match="no-such-engine"):
        child.run(job)
