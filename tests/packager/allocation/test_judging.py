"""A choice of forms is held to a scheme in its bytes, on a text that neither of them knows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import golden_models
import numpy as np
import pytest
from tokenizers import Tokenizer

from edgepack_packager import blocks, calibration, families, reference, targets
from edgepack_packager.allocation import judging, sensitivity
from edgepack_packager.allocation.judging import Judge
from edgepack_packager.allocation.sensitivity import Sensitivity
from edgepack_packager.allocation.table import FILE
from edgepack_packager.build import Built, build
from edgepack_packager.calibration.text import BUILT_IN, Corpus, read
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import held_out
from edgepack_packager.recipe import Recipe
from edgepack_packager.seal import tokenizer_of
from edgepack_packager.source import DEMO
from edgepack_packager.targets import Model
from edgepack_packager.text import read_text
from edgepack_packager.text.compiled import compiled

TEXTS = [list(range(5, 45)), list(range(300, 340))]


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


def log_softmax(weights: Weights, ids: list[int]) -> np.ndarray[Any, np.dtype[np.float64]]:
    logits = reference.logits(weights, ids).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    found: np.ndarray[Any, np.dtype[np.float64]] = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def test_the_divergence_of_forms_is_that_of_the_softmax(demo: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    model, target = Model("demo", demo.decoder, demo.dtype), targets.find("onnx")
    forms = dict(target.ruled(demo.decoder, demo.dtype, "int4"))
    del forms["layers.0.mlp.up"]
    parts = blocks.row_blocks
    # a head in many blocks, of which the first has not the largest logit of every id
    monkeypatch.setattr(blocks, "row_blocks", lambda shape: parts(shape, elements=64 * shape[1]))
    found = Judge(demo, model, TEXTS).divergences(target, forms)

    def rounded(name: str, rows: Float32) -> Float32:
        return target.rounded(model, name, rows, forms[name]) if name in forms else rows

    other = sensitivity.Rounded(demo, rounded)
    pairs = [(log_softmax(demo, ids), log_softmax(other, ids)) for ids in TEXTS]
    true = np.concatenate([(np.exp(p) * (p - q)).sum(axis=1) for p, q in pairs])
    assert true.mean() > 0.01
    np.testing.assert_allclose(found, true, rtol=1e-3, atol=1e-5)


def test_nothing_rounded_loses_nothing(demo: Weights) -> None:
    judge = Judge(demo, Model("demo", demo.decoder, demo.dtype), TEXTS)
    np.testing.assert_allclose(judge.divergences(targets.find("mlx"), {}), 0, atol=1e-6)


def test_what_judges_calibrates_nothing(demo: Weights) -> None:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        side = compiled(read_text(golden_models.DEMO, checkpoint.config, demo.decoder))
    tokenizer, context = tokenizer_of(side), demo.decoder.context
    long = Corpus("long", " ".join(f"The number {number} is not {number + 1}." for number in range(4000)))
    told = calibration.told(long, tokenizer, side, None)
    passes = [window for each in calibration.passes(long, told, context) for window in each]
    found = judging.texts(told, tokenizer, demo.decoder)
    assert len(found) == judging.WINDOWS
    assert {len(each) for each in found} == {judging.WINDOW}
    assert not any(held_out.overlap(each, window) for each in found for window in passes)
    # a text that the calibration reads from end to end leaves nothing
    short = calibration.told(read(BUILT_IN), tokenizer, side, None)[: calibration.size(context)]
    own = tokenizer.encode(judging.built_in(), bos=False)
    assert all(held_out.overlap(each, own) == 1 for each in judging.texts(short, tokenizer, demo.decoder))


def test_the_text_that_judges_stands_nowhere_else() -> None:
    tokenizer = Tokenizer.from_file(str(golden_models.DEMO / "tokenizer.json"))
    own = tokenizer.encode(judging.built_in()).ids
    for other in (read(BUILT_IN), held_out.read(held_out.BUILT_IN)):
        assert held_out.overlap(own, tokenizer.encode(other.text).ids) < held_out.SHARED


def built(out: Path, quant: str) -> tuple[Built, Mapping[str, str]]:
    found = build(DEMO, Recipe(("onnx",), (quant,)), out)
    lines = [line.split("#")[0] for line in (out / FILE).read_text("utf-8").splitlines() if line.startswith('"')]
    return found, dict((part.strip().strip('"') for part in line.split("=")) for line in lines)


def test_a_choice_that_loses_more_gives_way_to_the_scheme(
    demo: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fault is planted: what every matrix is said to lose is the opposite of what was measured."""
    sound, chosen = built(tmp_path / "sound", "5.8bits")
    measure = sensitivity.measure

    def upside_down(*arguments: Any) -> Sensitivity:
        return Sensitivity({name: gain**-3 for name, gain in measure(*arguments).gains.items()})

    monkeypatch.setattr(sensitivity, "measure", upside_down)
    wrong, kept = built(tmp_path / "wrong", "5.8bits")
    assert kept == targets.find("onnx").ruled(demo.decoder, demo.dtype, "int4_asym") != chosen
    notes, others = (str(each.manifest.producer.recipe.get("notes", "")) for each in (sound, wrong))
    assert "after all" not in notes
    assert "onnx-5.8bits: the forms of int4_asym after all" in others
    assert "nats of loss measured on another text, where the forms of" in (sound.path / FILE).read_text("utf-8")
    assert "the forms of int4_asym after all" in (wrong.path / FILE).read_text("utf-8")
