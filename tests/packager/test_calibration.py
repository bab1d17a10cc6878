"""Calibration: what columns count, which text says so, and what writers make of it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import golden_models
import numpy as np
import pytest
from damage import DAMAGE, Damaged
from models import make_llama
from schemes import schemes

from edgepack.errors import BuildError, SourceError, UsageError
from edgepack_packager import calibration, families, reference, targets
from edgepack_packager.build import build
from edgepack_packager.calibration.feedback import Moments, digest
from edgepack_packager.calibration.text import BUILT_IN, Corpus, read, windows
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.draft import recipe_of
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.recipe import Recipe
from edgepack_packager.seal import tokenizer_of
from edgepack_packager.targets import CALIBRATED_BITS, Model, Request
from edgepack_packager.targets.gguf.quantize import encode
from edgepack_packager.targets.gguf.recipe import Kind
from edgepack_packager.text import read_text
from edgepack_packager.text.compiled import compiled
from edgepack_packager.write import write

PASSES = [[list(range(24)), list(range(100, 124))], [[5] * 24]]


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.fixture(scope="module")
def counts(demo: Weights) -> dict[str, Float32]:
    """What the columns of the demo model count in the first part of its vocabulary's ids."""
    ids = np.random.default_rng(0).integers(0, demo.decoder.n_vocab, (4, 256)).tolist()
    return calibration.importance(demo, [ids])


def searched() -> list[tuple[str, str]]:
    """Every scheme whose scales a calibration chooses."""
    return [each for each in schemes() if targets.find(each[0]).schemes[each[1]] < CALIBRATED_BITS]


def judged(
    target: str, scheme: str, written: Weights, source: Weights, by: Mapping[str, Float32], folder: Path
) -> tuple[list[str], float]:
    """Write a calibrated variant of some weights; return the gates that it misses, and its weighed squared error."""
    chosen = targets.find(target)
    model = Model("judged", source.decoder, source.dtype, importance=by)
    request = Request(chosen, scheme, scheme, "calibrated" if by else "own")
    write(written, [request], folder, model)
    found = missed(tensors.prove(chosen, folder / request.id, source, lambda _: None, by).findings)
    return found, weighed(chosen.read(folder / request.id, source.decoder), source, by)


def weighed(reader: targets.Reader, source: Weights, by: Mapping[str, Float32]) -> float:
    total = 0.0
    for name, shape in source.decoder.tensors():
        if len(shape) == 2:
            error = reader.rows(name, 0, shape[0]) - source.rows(name, 0, shape[0])
            total += float((np.square(error) * by.get(name, np.float32(1))).sum(dtype=np.float64))
    reader.close()
    return total


def test_columns_count_as_the_mean_square_of_what_they_are_multiplied_with(tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, layers=2)) as checkpoint:
        weights = families.open_model(checkpoint)
        found = calibration.importance(weights, PASSES)
        decoder = weights.decoder
        ids = [i for texts in PASSES for ids in texts for i in ids]
        embedded = np.stack([weights.rows("embedding", i, i + 1)[0] for i in ids]).astype(np.float64)
        gain = weights.rows("layers.0.attention.norm", 0, decoder.hidden_size)
        normed = embedded / np.sqrt(np.square(embedded).mean(axis=1, keepdims=True) + decoder.norm_eps) * gain
        states = np.concatenate([reference.hidden(weights, ids)[0] for texts in PASSES for ids in texts])
    for name, inputs in (("layers.0.attention.q", normed), ("embedding" if decoder.tied else "head", states)):
        squares = np.square(inputs.astype(np.float64)).mean(axis=0)
        np.testing.assert_allclose(found[name], squares / squares.mean(), rtol=2.0**-7, atol=2.0**-10)
    assert np.array_equal(found["layers.1.attention.q"], found["layers.1.attention.v"])
    assert not np.array_equal(found["layers.1.attention.q"], found["layers.0.attention.q"])
    shapes = {name: shape[1] for name, shape in decoder.tensors() if len(shape) == 2}
    assert {name: len(each) for name, each in found.items()} == {name: shapes[name] for name in found}
    assert set(shapes) - set(found) <= {"embedding"}


class Silenced:
    """Weights of which a row of one matrix is zero."""

    def __init__(self, inner: Weights, tensor: str, row: int) -> None:
        self.decoder, self.dtype = inner.decoder, inner.dtype
        self._inner, self._tensor, self._row = inner, tensor, row

    def rows(self, name: str, start: int, stop: int) -> Float32:
        rows = self._inner.rows(name, start, stop)
        if name == self._tensor and start <= self._row < stop:
            rows = rows.copy()
            rows[self._row - start] = 0
        return rows


@pytest.mark.parametrize("layer", range(3))
def test_a_layers_columns_count_by_that_layers_inputs(layer: int, tmp_path: Path) -> None:
    with open_checkpoint(make_llama(tmp_path, layers=3)) as checkpoint:
        weights = families.open_model(checkpoint)
        found = calibration.importance(Silenced(weights, f"layers.{layer}.mlp.up", 7), PASSES)
    least = [found[f"layers.{each}.mlp.down"][7] == 2.0**-10 for each in range(3)]
    assert least == [each == layer for each in range(3)]


@pytest.mark.parametrize(("target", "scheme"), searched())
def test_a_calibrated_variant_holds_and_loses_less_where_it_counts(
    target: str, scheme: str, demo: Weights, counts: dict[str, Float32], tmp_path: Path
) -> None:
    gates, error = judged(target, scheme, demo, demo, counts, tmp_path / "calibrated")
    assert gates == []
    chosen = targets.find(target)
    plain = Request(chosen, scheme, scheme)
    write(demo, [plain], tmp_path / "plain", Model("plain", demo.decoder, demo.dtype, importance=counts))
    assert error < 0.95 * weighed(chosen.read(tmp_path / "plain" / plain.id, demo.decoder), demo, counts)


def plain() -> list[tuple[str, str]]:
    """Every scheme whose scales a search without a text chooses, where it is asked for."""
    return [(target, scheme) for target, scheme in searched() if scheme not in targets.find(target).searched]


@pytest.mark.parametrize(("target", "scheme"), plain())
def test_a_searched_variant_holds_and_loses_less(target: str, scheme: str, demo: Weights, tmp_path: Path) -> None:
    chosen, model = targets.find(target), Model("searched", demo.decoder, demo.dtype)
    own, request = Request(chosen, scheme, scheme), Request(chosen, scheme, scheme, "searched")
    assert request.id == f"{own.id}-searched"
    write(demo, [own, request], tmp_path, model)
    assert missed(tensors.prove(chosen, tmp_path / request.id, demo, lambda _: None).findings) == []
    errors = [weighed(chosen.read(tmp_path / each.id, demo.decoder), demo, {}) for each in (request, own)]
    assert errors[0] < 0.995 * errors[1]


@pytest.mark.parametrize(("target", "scheme"), [("gguf", "q4_0"), ("onnx", "int4"), ("mlx", "4bit")])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_caught_in_searched_variants(
    damage: str, target: str, scheme: str, demo: Weights, tmp_path: Path
) -> None:
    chosen, model = targets.find(target), Model("searched", demo.decoder, demo.dtype)
    request = Request(chosen, scheme, scheme, "searched")
    write(Damaged(demo, DAMAGE[damage]), [request], tmp_path, model)
    assert missed(tensors.prove(chosen, tmp_path / request.id, demo, lambda _: None).findings)


def variants(*quants: str, **said: Any) -> list[str]:
    """Return the names of what a recipe builds of the demo model for every target."""
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        decoder = families.describe(checkpoint.config)
        text = read_text(golden_models.DEMO, checkpoint.config, decoder)
    recipe = Recipe(("gguf", "onnx", "mlx"), quants, **said)
    return [request.id for request in recipe.requests(Model("demo", decoder, "f32", {}, text))]


def test_names_say_what_chose_their_scales() -> None:
    assert variants("q4", "q8") == variants("q4", "q8", quality=None)
    peers = ("gguf:q4_0", "onnx:int4", "mlx:4bit")
    assert variants(*peers) == variants(*peers, quality="plain") == ["gguf-q4_0", "onnx-int4", "mlx-4bit"]
    assert variants(*peers, quality="searched") == ["gguf-q4_0-searched", "onnx-int4-searched", "mlx-4bit-searched"]
    assert variants(*peers, quality="calibrated") == ["gguf-q4_0-cal", "onnx-int4-cal", "mlx-4bit-cal"]
    # Two of the mixtures are searched by their own rule, and 8 bits never are.
    both = ["gguf-q4_k_m-searched", "gguf-q8_0", "onnx-int4_mixed", "onnx-int8", "mlx-4bit_mixed", "mlx-8bit"]
    assert variants("q4", "q8", quality="searched") == both
    with pytest.raises(UsageError, match="the scales of onnx's int4_mixed are searched") as refused:
        variants("q4", quality="plain")
    assert "--quant onnx:int4, or" in str(refused.value.hint)
    with pytest.raises(UsageError, match="the scales of onnx's int2 are searched"):
        variants("gguf:q4_0", "onnx:int2", "mlx:2bit", quality="plain")


def test_what_contradicts_a_quality_is_refused() -> None:
    with pytest.raises(UsageError, match="--calibrate was given with --quality searched, which asks no text"):
        Recipe(("onnx",), ("q4",), quality="searched", calibrate=BUILT_IN)
    with pytest.raises(UsageError, match="--quality searched was given with a goal or a recipe"):
        Recipe(("onnx",), ("4.5bits",), quality="searched")
    with pytest.raises(UsageError, match="--quality calibrated was given with --unproven, which runs no reference"):
        Recipe(("onnx",), ("q4",), quality="calibrated", unproven=True)
    with pytest.raises(UsageError, match="Nothing of gguf-q8_0, onnx-int8, mlx-8bit has scales that a search would"):
        variants("q8", quality="searched")


def test_a_draft_takes_the_quality_that_needs_no_text() -> None:
    for quality, drafts in (("searched", "searched"), ("plain", "plain"), ("calibrated", None)):
        recipe = Recipe(("onnx",), ("int4",), quality=quality, draft="demo")  # type: ignore[arg-type]
        assert recipe_of(recipe).quality == drafts


def test_a_bundle_says_which_quality_was_asked_for(tmp_path: Path) -> None:
    recipe = Recipe(("onnx",), ("int4", "q8"), quality="searched", unproven=True)
    built = build("demo", recipe, tmp_path / "a.edgepack")
    assert [variant.id for variant in built.manifest.variants] == ["onnx-int4-searched", "onnx-int8"]
    assert built.manifest.producer.recipe["quality"] == "searched"


@pytest.mark.parametrize(("target", "scheme"), searched())
def test_what_another_layer_counts_loses_more(
    target: str, scheme: str, demo: Weights, counts: dict[str, Float32], tmp_path: Path
) -> None:
    _, error = judged(target, scheme, demo, demo, counts, tmp_path / "own")
    last = demo.decoder.n_layers - 1
    others = {
        name: counts[".".join(["layers", str(last - int(name.split(".")[1])), *name.split(".")[2:]])]
        if name.startswith("layers.")
        else counts[name]
        for name in counts
    }
    chosen = targets.find(target)
    request = Request(chosen, scheme, scheme, "calibrated")
    write(demo, [request], tmp_path / "others", Model("others", demo.decoder, demo.dtype, importance=others))
    assert weighed(chosen.read(tmp_path / "others" / request.id, demo.decoder), demo, counts) > 1.02 * error


@pytest.mark.parametrize(("target", "scheme"), [("gguf", "q4_k_m"), ("onnx", "int4_mixed"), ("mlx", "4bit")])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_caught_in_calibrated_variants(
    damage: str, target: str, scheme: str, demo: Weights, counts: dict[str, Float32], tmp_path: Path
) -> None:
    assert judged(target, scheme, Damaged(demo, DAMAGE[damage]), demo, counts, tmp_path)[0]


@pytest.mark.parametrize(("target", "scheme"), searched())
def test_levels_are_the_nearest_where_a_few_columns_count_for_all(
    target: str, scheme: str, demo: Weights, tmp_path: Path
) -> None:
    random = np.random.default_rng(3)
    shapes = {name: shape[1] for name, shape in demo.decoder.tensors() if len(shape) == 2}
    loud = {name: np.exp(random.normal(0, 3, columns)).astype(np.float32) for name, columns in shapes.items()}
    assert judged(target, scheme, demo, demo, loud, tmp_path)[0] == []


@pytest.mark.parametrize("kind", ["q4_0", "q4_1", "q5_0", "q5_1", "q4_K", "q5_K", "q6_K"])
@pytest.mark.parametrize("number", [1e9, np.inf, np.nan])
def test_a_scale_that_no_block_can_hold_is_refused(kind: Kind, number: float) -> None:
    rows = np.random.default_rng(4).normal(size=(2, 256)).astype(np.float32)
    rows[1, 7] = number
    with pytest.raises(BuildError, match=f"rows holds a value that {kind} cannot"):
        encode(kind, rows, "rows", np.ones(256, np.float32))


def test_windows_are_spread_over_a_text() -> None:
    def of(count: int) -> list[tuple[int, int]]:
        return [(each[0], len(each)) for each in windows(Corpus("numbers", ""), range(count), 512, 8)]

    assert of(300) == [(0, 300)]
    assert of(1100) == [(0, 512), (512, 512)]
    starts, lengths = zip(*of(10_000), strict=True)
    assert lengths == (512,) * 8
    assert starts == tuple(sorted(set(starts)))
    assert starts[-1] > 8_000


@pytest.mark.parametrize("scheme", ["gguf:q2_k", "gguf:iq3_s"])
def test_what_needs_a_calibration_is_refused_without(scheme: str, demo: Weights) -> None:
    model = Model("demo", demo.decoder, demo.dtype)
    with pytest.raises(UsageError, match=f"{scheme} makes nonsense of a model") as error:
        Recipe(("gguf",), (scheme,)).requests(model)
    assert "--calibrate built-in" in str(error.value)


def test_texts_that_cannot_calibrate_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"none\.txt cannot be read: No such file"):
        read(str(tmp_path / "none.txt"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="pipe is no plain file"):
        read(str(tmp_path / "pipe"))
    (tmp_path / "latin.txt").write_bytes("Käse".encode("latin-1"))
    with pytest.raises(SourceError, match="no text in UTF-8: see byte 1"):
        read(str(tmp_path / "latin.txt"))
    (tmp_path / "short.txt").write_text("Too little.")
    with pytest.raises(SourceError, match=r"short\.txt has \d+ tokens, of which a calibration needs at least 256"):
        build("demo", Recipe(("onnx",), ("q4",), calibrate=str(tmp_path / "short.txt")), tmp_path / "a.edgepack")
    with pytest.raises(UsageError, match="--calibrate was given with --unproven"):
        Recipe(("onnx",), ("q4",), unproven=True, calibrate=BUILT_IN)
    with pytest.raises(UsageError, match="Nothing of onnx-int8 has scales that a calibration would choose"):
        build("demo", Recipe(("onnx",), ("q8",), calibrate=BUILT_IN), tmp_path / "b.edgepack")
    assert not list(tmp_path.glob("*.edgepack"))


def test_a_file_is_named_so_that_a_manifest_can_hold_it(tmp_path: Path) -> None:
    odd = tmp_path / os.fsdecode(b"n\xff\x1b[31m.txt")
    odd.write_text("\N{ZERO WIDTH NO-BREAK SPACE}Some words.", encoding="utf-8")
    corpus = read(str(odd))
    assert corpus.name.isprintable()
    assert corpus.name.encode()
    assert corpus.text == "Some words."


def test_a_calibrated_bundle_says_what_it_was_calibrated_with_and_is_the_same_again(tmp_path: Path) -> None:
    recipe = Recipe(("onnx", "gguf"), ("q4", "q8"), calibrate=BUILT_IN)
    fed = Request(targets.find("onnx"), "q4", "int4_mixed", "calibrated")
    first, again = (build("demo", recipe, tmp_path / f"{name}.edgepack") for name in ("first", "again"))
    assert first.id == again.id
    ids = [variant.id for variant in first.manifest.variants]
    assert ids == ["onnx-int4_mixed-cal", "onnx-int8", "gguf-q4_k_m-cal", "gguf-q8_0"]
    evidence = json.loads((first.path / "evidence" / "onnx-int4_mixed-cal.json").read_bytes())
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        weights = families.open_model(checkpoint)
        text = compiled(read_text(golden_models.DEMO, checkpoint.config, weights.decoder))
        told = calibration.told(read(BUILT_IN), tokenizer_of(text), text, None)
        passes = calibration.passes(read(BUILT_IN), told, weights.decoder.context)
        names = fed.fed(weights.decoder, weights.dtype)
        moments = Moments(tmp_path / "moments", names)
        statistics = calibration.importance(weights, passes, also=moments.see)
    assert evidence["calibration"] == {
        "statistics_sha256": calibration.digest(statistics),
        "fed": len(names),
        "feedback_sha256": digest(moments.finish()),
    }
    assert "tensors.products" in [gate["name"] for gate in evidence["gates"]]
    said = first.manifest.producer.recipe
    assert said["error_feedback"] == ["onnx-int4_mixed-cal"]
    assert said["calibrate"] == BUILT_IN
    assert said["calibrate_sha256"] == read(BUILT_IN).sha256
