"""Delta rules with more heads of values than of keys: a GGUF file has their heads in another order than the model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from decoders import RandomWeights
from gguf_decoders import DECODERS
from variants import nmse, start

from edgepack.bundle.decoder import Decoder, Delta
from edgepack.bundle.manifest import Gate
from edgepack.errors import BuildError
from edgepack_packager import calibration, reference, targets
from edgepack_packager.calibration.feedback import Moments
from edgepack_packager.checkpoint.gguf import names
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.checkpoint.gguf.names import Tiles
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import engine, execution, products, structure, tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Model, Request
from edgepack_packager.targets.feedback import Feedback
from edgepack_packager.targets.gguf import writer
from edgepack_packager.targets.gguf.tiles import moved
from edgepack_packager.write import write

TWICE = DECODERS["qwen35: twice the heads of values"]
THRICE = DECODERS["qwen35: three times the heads of values, in blocks of 256"]
BOTH = pytest.mark.parametrize("decoder", [TWICE, THRICE], ids=["twice", "three times"])
GGUF = targets.find("gguf")
IDS: list[int] = np.random.default_rng(3).integers(0, 128, 160).tolist()
TEXTS: list[list[int]] = np.random.default_rng(4).integers(0, 128, (3, 128)).tolist()


def variant(folder: Path, decoder: Decoder, scheme: str = "f32", model: Model | None = None) -> Path:
    """Write a variant with random weights, and return its folder."""
    request = Request(GGUF, scheme, scheme, "calibrated" if model else "own")
    write(RandomWeights(decoder), [request], folder, model or Model("tiny", decoder, "f32"))
    return folder / request.id


def delta_of(decoder: Decoder) -> Delta:
    return next(iter(decoder.correcting.values()))


@BOTH
def test_the_head_v_of_a_key_is_the_one_of_all_keys_at_v(decoder: Decoder, tmp_path: Path) -> None:
    """Place by place, as the graph reads them: head i of the file has the keys i modulo their number."""
    delta, weights = delta_of(decoder), RandomWeights(decoder).tensors
    keys, shared = delta.n_key_heads, delta.n_value_heads // delta.n_key_heads
    file = GgufFile(variant(tmp_path, decoder) / "model.gguf", BuildError)

    def there(name: str) -> Float32:
        info = file.tensors[f"blk.1.{name}"]
        return file.rows(info, 0, info.shape[0])

    ours = {role: weights[f"layers.1.delta.{role}"] for role, _ in delta.tensors(decoder.hidden_size)}
    kernel = ours["kernel"].reshape(-1, delta.length)
    joined, size = 2 * delta.key_size, delta.value_dim
    with closing(file):
        assert np.array_equal(there("attn_qkv.weight")[:joined], ours["qkv"][:joined])
        assert np.array_equal(there("ssm_conv1d.weight")[:joined], kernel[:joined])
        assert np.array_equal(there("ssm_norm.weight"), ours["head_norm"])
        for head in range(delta.n_value_heads):
            turn, key = divmod(head, keys)
            found, own = slice(head * size, (head + 1) * size), key * shared + turn
            wanted = slice(own * size, (own + 1) * size)
            assert np.array_equal(there("attn_qkv.weight")[joined:][found], ours["qkv"][joined:][wanted])
            assert np.array_equal(there("ssm_conv1d.weight")[joined:][found], kernel[joined:][wanted])
            assert np.array_equal(there("attn_gate.weight")[found], ours["z"][wanted])
            assert np.array_equal(there("ssm_out.weight")[:, found], ours["out"][:, wanted])
            for name, role in (("ssm_alpha.weight", "a"), ("ssm_beta.weight", "b"), ("ssm_dt.bias", "step")):
                assert np.array_equal(there(name)[head], ours[role][own])
            assert there("ssm_a")[head] == -np.exp(ours["decay"][own])


def test_as_many_heads_of_values_as_of_keys_stay_where_they_are() -> None:
    for name in ("qwen35", "qwen35: untied, scores, another pattern"):
        parts = names.parts(DECODERS[name], "qwen35").values()
        assert not [part for part in parts if part.tiled or part.columns]


def test_an_order_is_that_of_the_places() -> None:
    tiles = Tiles(keys=4, shared=3, size=5, before=7)
    assert [tiles.place(row) for row in tiles.order()] == list(range(67))
    assert tiles.place(7 + 5 * 3) == 7 + 5  # the first head of the second key is the second


@BOTH
@pytest.mark.parametrize("role", ["qkv", "z", "a", "kernel", "out"])
def test_any_stretch_of_rows_is_read_back(role: str, decoder: Decoder, tmp_path: Path) -> None:
    name, weights = f"layers.0.delta.{role}", RandomWeights(decoder)
    rows = len(weights.tensors[name])
    with closing(GGUF.read(variant(tmp_path, decoder), decoder)) as reader:
        for first, last in ((0, rows), (0, 0), (rows, rows), (1, 2), (rows // 3, rows - 1), (rows - 1, rows)):
            assert np.array_equal(reader.rows(name, first, last), weights.rows(name, first, last))


@BOTH
def test_f32_is_the_reference_in_steps_of_any_size_and_after_a_rewind(decoder: Decoder, tmp_path: Path) -> None:
    expected = reference.logits(RandomWeights(decoder), IDS)
    folder, limit = variant(tmp_path, decoder), GGUF.nmse(decoder)
    assert limit == 1e-9
    for chunk in (512, 64, 19):
        with closing(start("gguf", folder, decoder, chunk=chunk)) as session:
            assert nmse(session.forward_all(IDS), expected) <= limit
    with closing(start("gguf", folder, decoder, chunk=16)) as session:
        assert nmse(np.stack([session.forward([each]) for each in IDS]), expected) <= limit
    with closing(start("gguf", folder, decoder, chunk=16)) as session:
        session.forward(IDS[:70])
        session.forward_all(IDS[70:90][::-1])
        assert session.rewind(75) == 70  # the end of a step is a mark
        assert nmse(session.forward_all(IDS[70:]), expected[70:]) <= limit


@BOTH
def test_the_proof_of_the_structure_passes(decoder: Decoder, tmp_path: Path) -> None:
    (gate,) = structure.prove([GGUF], RandomWeights(decoder), IDS, tmp_path).values()
    assert isinstance(gate, Gate)
    assert gate.passes, gate


def held(folder: Path, decoder: Decoder, scratch: Path) -> list[str]:
    """Return the gates that a variant without calibration misses."""
    found = tensors.prove(GGUF, folder, RandomWeights(decoder), lambda _: None).findings
    logits = scratch / "logits"
    engine.run(GGUF.runtime, folder, decoder, IDS, "f32", logits)
    gate = execution.prove(GGUF, folder, decoder, IDS, logits, kv_cache="f32", scratch=scratch)
    return [*missed(found), *([] if gate.passes else [str(gate)])]


@BOTH
@pytest.mark.parametrize("scheme", ["q8_0", "q4_0", "q4_k_m"])
def test_quantised_the_file_holds_the_source_and_the_engine_reads_what_it_holds(
    scheme: str, decoder: Decoder, tmp_path: Path
) -> None:
    assert held(variant(tmp_path, decoder, scheme), decoder, tmp_path) == []


def observed(decoder: Decoder, folder: Path) -> tuple[Mapping[str, Float32], Mapping[str, Feedback]]:
    """What texts say of a model: what columns count, and what errors are made good by."""
    weights = RandomWeights(decoder)
    matrices = {name for name, shape in decoder.tensors() if len(shape) == 2 and name != "embedding"}
    moments = Moments(folder, matrices)
    return calibration.importance(weights, [TEXTS[:2], TEXTS[2:]], also=moments.see), moments.finish()


def calibrated(decoder: Decoder, folder: Path) -> Model:
    counts, feedback = observed(decoder, folder)
    return Model("tiny", decoder, "f32", importance=counts, feedback=feedback)


def judged(folder: Path, model: Model) -> list[str]:
    """Return the gates that a calibrated variant misses."""
    weights = RandomWeights(model.decoder)
    request = Request(GGUF, "q4_0", "q4_0", "calibrated")
    own = {name: model.feedback[name] for name in request.fed(model.decoder, "f32")}
    found = tensors.prove(GGUF, folder, weights, lambda _: None, model.importance, own).findings
    gained = products.prove(GGUF, folder, weights, own, TEXTS[0], lambda: None)
    assert gained
    return missed([*found, gained])


def lost(folder: Path, model: Model) -> float:
    """What the projections of the delta rules' results lose of their products, of what they are."""
    weights, found = RandomWeights(model.decoder), np.zeros(2)
    inputs: dict[str, list[Float32]] = {}
    reference.observe(weights, TEXTS, lambda name, x: inputs.setdefault(name, []).append(x))
    with closing(GGUF.read(folder, model.decoder)) as reader:
        for layer in model.decoder.correcting:
            name = f"layers.{layer}.delta.out"
            x, rows = np.concatenate(inputs[name]), weights.tensors[name]
            found += [np.square(x @ each.T).sum() for each in (rows - reader.rows(name, 0, len(rows)), rows)]
    return float(found[0] / found[1])


@BOTH
def test_calibrated_the_file_holds_what_a_plain_one_does_not(decoder: Decoder, tmp_path: Path) -> None:
    model = calibrated(decoder, tmp_path / "moments")
    folder = variant(tmp_path / "all", decoder, "q4_0", model)
    assert judged(folder, model) == []
    weighed = lost(variant(tmp_path / "weighed", decoder, "q4_0", replace(model, feedback={})), model)
    assert lost(folder, model) < 0.9 * weighed
    assert weighed < lost(variant(tmp_path / "plain", decoder, "q4_0"), model)


def test_what_a_file_would_hold_is_what_it_holds(tmp_path: Path) -> None:
    model = calibrated(THRICE, tmp_path / "moments")
    name, rows = "layers.0.delta.out", RandomWeights(THRICE).tensors["layers.0.delta.out"]
    folder = variant(tmp_path, THRICE, "q4_0", model)
    with closing(GGUF.read(folder, THRICE)) as reader:
        assert np.array_equal(reader.rows(name, 0, len(rows)), GGUF.rounded(model, name, rows, "q4_0"))


Moved = tuple[Float32, Float32 | None, Feedback | None]


def _counts_stay(tiles: Tiles, rows: Float32, counts: Float32 | None, feedback: Feedback | None) -> Moved:
    rows, _, feedback = moved(tiles, rows, None, feedback)
    return rows, counts, feedback


def _feedback_stays(tiles: Tiles, rows: Float32, counts: Float32 | None, feedback: Feedback | None) -> Moved:
    rows, counts, _ = moved(tiles, rows, counts, None)
    return rows, counts, feedback


@pytest.mark.parametrize("fault", [_counts_stay, _feedback_stays])
def test_statistics_that_do_not_move_with_the_columns_cost_more(
    fault: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = calibrated(THRICE, tmp_path / "moments")
    right = lost(variant(tmp_path / "right", THRICE, "q4_0", model), model)
    monkeypatch.setattr(writer, "moved", fault)
    assert lost(variant(tmp_path / "wrong", THRICE, "q4_0", model), model) > 1.05 * right


def _all_inverse(tiles: Tiles | None) -> Tiles | None:
    return tiles and replace(tiles, keys=tiles.shared, shared=tiles.keys)


ROLES = ("qkv", "kernel", "z", "a", "b", "step", "decay", "out")


@pytest.mark.parametrize("fault", [*ROLES, "none of them", "the inverse"])
def test_a_fault_is_heard(fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a broken writer leaves where it was, or moves the other way: read back alike, it is the engine's to say."""
    tiled, of_columns = names._tiled, names.columns

    def changed(role: str, tiles: Tiles | None) -> Tiles | None:
        if fault == "the inverse":
            return _all_inverse(tiles)
        return None if fault in ("none of them", role) else tiles

    def rows_of(decoder: Decoder, canonical: str) -> Tiles | None:
        return changed(canonical.rpartition(".")[2], tiled(decoder, canonical))

    def columns_of(decoder: Decoder, canonical: str) -> Tiles | None:
        return changed("out", of_columns(decoder, canonical))

    monkeypatch.setattr(names, "_tiled", rows_of)
    monkeypatch.setattr(names, "columns", columns_of)
    weights, folder = RandomWeights(THRICE), variant(tmp_path, THRICE)
    with closing(GGUF.read(folder, THRICE)) as reader:
        for name in weights.tensors:
            if name.endswith(".delta.out"):
                assert np.array_equal(reader.rows(name, 0, len(weights.tensors[name])), weights.tensors[name])
    with closing(start("gguf", folder, THRICE)) as session:
        error = nmse(session.forward_all(IDS), reference.logits(weights, IDS))
    assert error >= 10 * GGUF.nmse(THRICE)
    (gate,) = structure.prove([GGUF], weights, IDS, tmp_path).values()
    assert isinstance(gate, Gate)
    assert not gate.passes
