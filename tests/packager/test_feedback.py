"""Errors made good: the factors that say where, the levels that do, and the gates that hear what is wrong in either."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import golden_models
import numpy as np
import pytest
from damage import DAMAGE, Damaged
from models import make_llama
from numpy.typing import NDArray
from schemes import schemes

from edgepack_packager import calibration, families, reference, targets
from edgepack_packager.arithmetic.repeatable import REPEATABLE
from edgepack_packager.calibration import feedback as made_good
from edgepack_packager.calibration.feedback import Moments, digest, factors, parts, room, softened
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import products, tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import CALIBRATED_BITS, Model, Request
from edgepack_packager.targets.feedback import BLOCK, Feedback, Part, levels, pack, size
from edgepack_packager.write import write

IDS = np.random.default_rng(0).integers(0, 4096, (4, 256)).tolist()


def inputs(columns: int, seed: int = 1) -> Float32:
    """What a product may be asked for: columns of all sizes that hang together."""
    random = np.random.default_rng(seed)
    mixed = random.normal(size=(2 * columns, columns)) @ random.normal(size=(columns, columns))
    found: Float32 = (mixed * np.exp(random.normal(0, 0.5, columns))).astype(np.float32)
    return found


def moments(x: Float32) -> Float32:
    sums = np.zeros((x.shape[1],) * 2, np.float32)
    REPEATABLE.add_moments(x, sums)
    return sums


def fed(x: Float32) -> Feedback:
    order, factor = factors(moments(x))
    return [Part(order, pack(factor))]


def ordinary(rows: int, columns: int, group: int, top: int) -> tuple[Float32, Float32, Float32]:
    """Rows with scales and biases whose levels reach over them."""
    random = np.random.default_rng(2)
    weights = random.normal(size=(rows, columns)).astype(np.float32)
    scales = random.uniform(6, 7, (rows, -(-columns // group))).astype(np.float32) / np.float32(top)
    return weights, scales, scales * np.float32(-(top + 1) / 2)


@pytest.mark.parametrize("columns", [32, 160, 320])
def test_a_factor_is_that_of_the_moments_with_each_square_twice(columns: int) -> None:
    sums = moments(inputs(columns))
    order, factor = factors(sums)
    exact = (np.tril(sums) + np.tril(sums, -1).T).astype(np.float64)
    exact[np.diag_indices_from(exact)] *= 2
    exact = exact[np.ix_(order, order)]
    assert (np.diff(exact.diagonal()) <= 0).all()
    assert not np.tril(factor).any()
    root = np.linalg.cholesky(exact[::-1, ::-1])[::-1, ::-1]
    np.testing.assert_allclose(factor, np.triu(root / root.diagonal(), 1), rtol=1e-3, atol=1e-4)


def test_columns_that_a_text_leaves_still_are_fed_nothing() -> None:
    x = inputs(64)
    x[:, 7] = 0
    order, factor = factors(moments(x))
    assert order[-1] == 7
    assert np.isfinite(factor).all()
    assert not factor[:, -1].any()


@pytest.mark.parametrize("columns", [5, BLOCK, BLOCK + 1, 3 * BLOCK + 32])
def test_a_factor_is_kept_in_half_of_its_bits(columns: int) -> None:
    factor = np.triu(np.random.default_rng(3).normal(size=(columns, columns)), 1).astype(np.float32)
    packed = pack(factor)
    part = Part(np.arange(columns), packed)
    assert len(packed) == size(columns)
    np.testing.assert_allclose(part.whole(), factor, rtol=2.0**-8)
    assert np.array_equal(part.panel(0), part.whole()[:BLOCK])


@pytest.mark.parametrize(("columns", "group", "top"), [(64, 32, 15), (300, 64, 3), (300, 32, 63)])
def test_each_level_is_the_nearest_to_what_the_errors_before_it_leave(
    columns: int, group: int, top: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(targets.feedback, "FARTHEST", np.inf)
    rows, scales, biases = ordinary(50, columns, group, top)
    (part,) = feedback = fed(inputs(columns))
    chosen = levels(rows, feedback, scales, biases, group, top)
    step, lowest = (np.repeat(each, group, axis=1)[:, :columns] for each in (scales, biases))
    errors = (rows - (chosen * step + lowest)).astype(np.float64)
    meant = rows.astype(np.float64)
    meant[:, part.columns] += errors[:, part.columns] @ part.whole()
    nearest = np.clip((meant - lowest) / step, 0, top)
    plain = np.clip(np.rint((rows - lowest) / step), 0, top)
    assert np.abs(chosen - nearest).max() <= 0.5 + 1e-3
    assert (chosen != plain).mean() > 0.1


def test_a_row_that_would_err_much_more_keeps_its_nearest_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, scales, biases = ordinary(50, 256, 32, 3)
    feedback, step, lowest = fed(inputs(256)), np.repeat(scales, 32, axis=1), np.repeat(biases, 32, axis=1)
    plain = np.clip(np.rint((rows - lowest) / step), 0, 3)

    def errors(chosen: NDArray[Any]) -> NDArray[np.float64]:
        found: NDArray[np.float64] = np.square(rows - (chosen * step + lowest)).sum(axis=1, dtype=np.float64)
        return found

    monkeypatch.setattr(targets.feedback, "FARTHEST", np.inf)
    free = levels(rows, feedback, scales, biases, 32, 3)
    shares = np.sqrt(errors(free) / errors(plain))
    between = float(np.median(shares))
    monkeypatch.setattr(targets.feedback, "FARTHEST", between)
    held = levels(rows, feedback, scales, biases, 32, 3)
    assert 0 < (shares > between).sum() < 50
    assert np.array_equal(held, np.where((shares > between)[:, None], plain, free))


def test_products_lose_less_with_errors_made_good() -> None:
    x = inputs(256)
    rows, scales, biases = ordinary(64, 256, 32, 15)

    def lost(feedback: Feedback) -> float:
        chosen = levels(rows, feedback, scales, biases, 32, 15)
        errors = rows - (chosen * np.repeat(scales, 32, axis=1) + np.repeat(biases, 32, axis=1))
        return float(np.square(x @ errors.T).sum(dtype=np.float64))

    none = lost([Part(np.arange(256), pack(np.zeros((256, 256), np.float32)))])
    assert lost(fed(x)) < 0.5 * none
    assert lost(fed(inputs(256, seed=9))) > none


@pytest.mark.parametrize("loud", [1e2, 1e4])
def test_one_loud_token_is_made_good_at_no_others_cost(loud: float) -> None:
    x = inputs(128)
    x[0] *= np.float32(loud)
    rows, scales, biases = ordinary(64, 128, 32, 15)

    def lost(feedback: Feedback) -> float:
        chosen = levels(rows, feedback, scales, biases, 32, 15)
        errors = rows - (chosen * np.repeat(scales, 32, axis=1) + np.repeat(biases, 32, axis=1))
        return float(np.square(x[1:] @ errors.T).sum(dtype=np.float64))

    none = lost([Part(np.arange(128), pack(np.zeros((128, 128), np.float32)))])
    assert lost(fed(softened(x))) < 0.7 * none
    assert (lost(fed(x)) > none) == (loud > 1e3)


def test_rows_are_chosen_alone() -> None:
    rows, scales, biases = ordinary(530, 192, 32, 15)
    feedback = fed(inputs(192))
    whole = levels(rows, feedback, scales, biases, 32, 15)
    some = slice(255, 258)
    assert np.array_equal(levels(rows[some], feedback, scales[some], biases[some], 32, 15), whole[some])


def test_bits_are_these_on_every_host() -> None:
    x = ((np.arange(96 * 160) * 7919 % 1009).reshape(160, 96) / np.float32(1009) - np.float32(0.5)).astype(np.float32)
    rows, scales = x[:64] * np.float32(3), np.full((64, 3), 0.2, np.float32)
    feedback = fed(x)
    found = hashlib.sha256(
        digest({"a": feedback}).encode() + levels(rows, feedback, scales, -8 * scales, 32, 15).tobytes()
    )
    assert found.hexdigest() == "da58f8dced9f40003ce8fda7d6df21d3d80f86b8953f247ee4d943b912a2725f"


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


Statistics = tuple[Mapping[str, Float32], Mapping[str, Feedback]]


@pytest.fixture(scope="module")
def statistics(demo: Weights, tmp_path_factory: pytest.TempPathFactory) -> Statistics:
    """What a text says of the demo model: what columns count, and what errors are made good by."""
    return observed(demo, tmp_path_factory.mktemp("demo") / "moments")


def observed(weights: Weights, folder: Path) -> Statistics:
    ids = [[each % weights.decoder.n_vocab for each in one] for one in IDS]
    found = Moments(folder, products_of(weights))
    counts = calibration.importance(weights, [ids[:2], ids[2:]], also=found.see)
    return counts, found.finish()


def products_of(weights: Weights) -> set[str]:
    return {name for name, shape in weights.decoder.tensors() if len(shape) == 2 and name != "embedding"}


@pytest.mark.parametrize("width", [made_good.WIDTH, 128])
def test_matrices_have_the_moments_of_their_own_inputs(
    width: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(made_good, "WIDTH", width)
    seen: dict[str, list[Float32]] = {}
    source = make_llama(tmp_path / "model", hidden=192, intermediate=320, layers=3, heads=6)
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        _, found = observed(weights, tmp_path / "moments")
        shapes, names = dict(weights.decoder.tensors()), products_of(weights)
        texts = [[each % weights.decoder.n_vocab for each in one] for one in IDS]
        reference.observe(weights, texts, lambda name, x: seen.setdefault(name, []).append(x))
        taken = sum(file.stat().st_size for file in (tmp_path / "moments").iterdir())
        assert taken == room(weights.decoder, names)
    assert set(found) == names
    for name, feedback in found.items():
        whole = np.concatenate(seen[name])
        places = list(parts(shapes[name][1]))
        assert len(places) == -(-shapes[name][1] // width)
        assert sorted(np.concatenate([part.columns for part in feedback])) == list(range(shapes[name][1]))
        for place, part in zip(places, feedback, strict=True):
            order, factor = factors(moments(whole[:, place.start : place.stop]))
            shuffled = np.argsort(part.columns), np.argsort(place.start + order)  # equal columns may change places
            ours, theirs = (each[np.ix_(by, by)] for each, by in zip((part.whole(), factor), shuffled, strict=True))
            assert np.corrcoef(ours.ravel(), theirs.ravel())[0, 1] > 0.999


def fed_schemes() -> list[tuple[str, str]]:
    """Every scheme of which some matrix of the demo model has its errors made good."""
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        decoder = families.describe(checkpoint.config)
    found = []
    for target, scheme in schemes():
        chosen = targets.find(target)
        request = Request(chosen, scheme, scheme, "calibrated")
        if chosen.schemes[scheme] < CALIBRATED_BITS and request.fed(decoder, "f32"):
            found.append((target, scheme))
    return found


def judged(
    target: str,
    scheme: str,
    source: Weights,
    statistics: Statistics,
    folder: Path,
    written: Weights | None = None,
    by: Mapping[str, Feedback] | None = None,
) -> list[str]:
    """Write a variant that makes errors good, and return the gates that it misses.

    ``written`` are the weights that the writer is fed, ``by`` what it makes errors good by, where those are others.
    """
    counts, feedback = statistics
    chosen = targets.find(target)
    request = Request(chosen, scheme, scheme, "calibrated")
    names = request.fed(source.decoder, source.dtype)
    model = Model("judged", source.decoder, source.dtype, importance=counts)
    write(written or source, [request], folder, replace_feedback(model, feedback if by is None else by))
    own = {name: each for name, each in feedback.items() if name in names}
    found = tensors.prove(chosen, folder / request.id, source, lambda _: None, counts, own).findings
    text = [each % source.decoder.n_vocab for each in IDS[0]]
    gained = products.prove(chosen, folder / request.id, source, own, text, lambda: None)
    return missed([*found, *([gained] if gained else [])])


def replace_feedback(model: Model, feedback: Mapping[str, Feedback]) -> Model:
    return Model(model.name, model.decoder, model.dtype, importance=model.importance, feedback=feedback)


def test_which_schemes_make_errors_good() -> None:
    found = fed_schemes()
    assert {("onnx", "int4"), ("onnx", "int2"), ("onnx", "int4_mixed"), ("mlx", "4bit"), ("mlx", "3bit_g32")} < {*found}
    assert ("gguf", "q4_0") in found
    assert not {("gguf", "q8_0"), ("onnx", "int8"), ("mlx", "8bit"), ("gguf", "iq4_nl")} & {*found}


@pytest.mark.parametrize(("target", "scheme"), fed_schemes())
def test_a_sound_variant_holds(target: str, scheme: str, demo: Weights, statistics: Statistics, tmp_path: Path) -> None:
    assert judged(target, scheme, demo, statistics, tmp_path) == []


SOME = [("gguf", "q4_0"), ("onnx", "int4"), ("onnx", "int4_mixed"), ("mlx", "4bit")]


@pytest.mark.parametrize(("target", "scheme"), SOME)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_caught(
    damage: str, target: str, scheme: str, demo: Weights, statistics: Statistics, tmp_path: Path
) -> None:
    assert judged(target, scheme, demo, statistics, tmp_path, Damaged(demo, DAMAGE[damage]))


def of_another_layer(feedback: Mapping[str, Feedback], layers: int) -> dict[str, Feedback]:
    def other(name: str) -> str:
        first, layer, *rest = name.split(".")
        return ".".join([first, str((int(layer) + 1) % layers), *rest])

    return {name: feedback[other(name)] if name.startswith("layers.") else each for name, each in feedback.items()}


def transposed(feedback: Mapping[str, Feedback]) -> dict[str, Feedback]:
    return {
        name: [Part(part.columns, pack(np.triu(part.whole()[::-1, ::-1].T, 1))) for part in each]
        for name, each in feedback.items()
    }


def in_another_order(feedback: Mapping[str, Feedback]) -> dict[str, Feedback]:
    return {name: [Part(np.sort(part.columns), part.packed) for part in each] for name, each in feedback.items()}


@pytest.mark.parametrize(("target", "scheme"), SOME)
@pytest.mark.parametrize("fault", ["of another layer", "transposed", "in another order"])
def test_factors_that_are_wrong_for_all_alike_are_heard_by_the_products(
    fault: str, target: str, scheme: str, demo: Weights, statistics: Statistics, tmp_path: Path
) -> None:
    counts, right = statistics
    wrong = {
        "of another layer": of_another_layer(right, demo.decoder.n_layers),
        "transposed": transposed(right),
        "in another order": in_another_order(right),
    }[fault]
    found = judged(target, scheme, demo, (counts, wrong), tmp_path)
    assert any(each.startswith("tensors.products") for each in found)


@pytest.mark.parametrize(("target", "scheme"), SOME)
@pytest.mark.parametrize("fault", ["none", "of another layer"])
def test_a_writer_that_knows_of_none_or_of_other_errors_is_heard(
    fault: str, target: str, scheme: str, demo: Weights, statistics: Statistics, tmp_path: Path
) -> None:
    by = {} if fault == "none" else of_another_layer(statistics[1], demo.decoder.n_layers)
    found = judged(target, scheme, demo, statistics, tmp_path, by=by)
    # mlx rounds its scales after it chose the levels that are nearest by them
    gate = "tensors.products" if fault == "none" and target != "mlx" else "tensors.nearest"
    assert any(each.startswith(gate) for each in found)


@pytest.mark.parametrize("target", ["gguf", "onnx", "mlx"])
def test_rows_on_a_grid_keep_it(target: str, tmp_path: Path) -> None:
    source = make_llama(tmp_path / "model", hidden=128, intermediate=256, heads=4, layers=2)
    scheme = {"gguf": "q4_0", "onnx": "int4", "mlx": "4bit_g32"}[target]
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        ternary = Damaged(weights, lambda of, *rows: on_a_grid(of.rows(*rows)))
        found = judged(target, scheme, ternary, observed(ternary, tmp_path / "moments"), tmp_path / "variant")
        reader = targets.find(target).read(tmp_path / "variant" / f"{target}-{scheme}-cal", weights.decoder)
        assert np.array_equal(reader.rows("layers.1.mlp.down", 0, 128), ternary.rows("layers.1.mlp.down", 0, 128))
        reader.close()
    assert found == []


def on_a_grid(rows: Float32) -> Float32:
    return rows if rows.ndim == 1 else (np.sign(rows) * (np.abs(rows) > np.abs(rows).mean()) / 32).astype(np.float32)
