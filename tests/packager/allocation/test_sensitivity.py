"""What a matrix is told to lose, against what the reference loses with it rounded."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import golden_models
import numpy as np
import pytest
from decoders import RandomWeights, describe
from tokenizers import Tokenizer

from edgepack_packager import calibration, families, reference, targets
from edgepack_packager.allocation import Allocator, goals, sensitivity
from edgepack_packager.allocation.sensitivity import Sensitivity, fitted, measure
from edgepack_packager.calibration.text import BUILT_IN, read
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets import Model, Request


class Rounded:
    """``Weights`` with some matrices as a target would store them."""

    def __init__(self, weights: Weights, model: Model, target: str, forms: Mapping[str, str]) -> None:
        self.decoder, self.dtype = weights.decoder, weights.dtype
        self._weights, self._model, self._target, self._forms = weights, model, targets.find(target), forms

    def rows(self, name: str, start: int, stop: int) -> Float32:
        rows = self._weights.rows(name, start, stop)
        form = self._forms.get(name)
        return rows if form is None else self._target.rounded(self._model, name, rows, form)


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint(golden_models.DEMO) as checkpoint:
        yield families.open_model(checkpoint)


def ids(text: str) -> list[list[int]]:
    """Return windows of a text's ids."""
    found = Tokenizer.from_file(str(golden_models.DEMO / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    return [found[start : start + 128] for start in range(0, len(found) - 127, 128)]


@pytest.fixture(scope="module")
def measured(demo: Weights) -> tuple[Model, Sensitivity]:
    windows = ids(read(BUILT_IN).text)
    model = Model("demo", demo.decoder, demo.dtype, importance=calibration.importance(demo, [windows[:8]]))
    return model, measure(demo, model, sensitivity.texts([windows]))


@pytest.fixture(scope="module")
def others() -> list[list[int]]:
    """Windows of the same text that nothing is measured on."""
    windows = ids(read(BUILT_IN).text)
    return [windows[len(windows) // 4], windows[3 * len(windows) // 4]]


def kl(weights: Weights, other: Weights, texts: list[list[int]]) -> float:
    return float(np.mean([_kl(weights, other, text) for text in texts]))


def _kl(weights: Weights, other: Weights, text: list[int]) -> float:
    logs = []
    for each in (weights, other):
        logits = reference.logits(each, text).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    return float((np.exp(logs[0]) * (logs[0] - logs[1])).sum(axis=1).mean())


def ranks(values: list[float]) -> list[int]:
    return np.argsort(np.argsort(values)).tolist()


def test_the_order_of_losses_is_told_and_chance_is_heard(
    demo: Weights, measured: tuple[Model, Sensitivity], others: list[list[int]]
) -> None:
    model, found = measured
    slots = targets.find("mlx").slots(demo.decoder, demo.dtype)[::2]
    form = "4bit"
    true = [kl(demo, Rounded(demo, model, "mlx", dict.fromkeys(slot.tensors, form)), others) for slot in slots]
    names = list(found.gains)
    mixed = Sensitivity(dict(zip(names, np.roll(list(found.gains.values()), 9).tolist(), strict=True)))
    told, wrong = (
        [sensitivity.losses(each, sensitivity.errors(targets.find("mlx"), model, demo, slot))[form] for slot in slots]
        for each in (found, mixed)
    )
    good, bad = (float(np.corrcoef(ranks(true), ranks(each))[0, 1]) for each in (told, wrong))
    assert good > 0.7
    assert bad < good - 0.2


@pytest.mark.parametrize("target", targets.names())
def test_the_whole_loss_is_told_to_a_factor(
    target: str, demo: Weights, measured: tuple[Model, Sensitivity], others: list[list[int]]
) -> None:
    model, found = measured
    chosen = targets.find(target)
    request = Request(chosen, "", chosen.scheme("q4", model), "calibrated", called="fit")
    allocator = Allocator(model, demo, found)
    bits = 5.6 if target == "onnx" else 5.0
    made = allocator.allocate(request, goals.Bits("", bits))
    true = kl(demo, Rounded(demo, model, target, made.request.forms), others)
    assert 1 / 3 < made.loss / true < 3
    smallest = {name: next(iter(slot.forms)) for slot in made.slots for name in slot.tensors}
    assert true < kl(demo, Rounded(demo, model, target, smallest), others)


def test_factors_give_back_the_sums_that_were_measured() -> None:
    random = np.random.default_rng(0)
    table, factors = random.uniform(0.1, 1, (5, 3)), np.outer(random.uniform(1, 9, 5), random.uniform(1, 9, 3))
    found = fitted(table, (table * factors).sum(axis=1), (table * factors).sum(axis=0))
    np.testing.assert_allclose(found, factors, rtol=1e-9)


def test_one_that_is_measured_alone_takes_nothing_from_its_neighbours() -> None:
    random = np.random.default_rng(1)
    names = [[f"{band} {role}" for role in "abc"] for band in range(5)]
    lost = np.outer(random.uniform(1, 9, 5), random.uniform(1, 9, 3))
    lost[2, 1] *= 12
    every = {name: float(lost[at]) for at, name in np.ndenumerate(names)}
    errors = dict.fromkeys(every, 0.01)

    def groups(lines: list[list[str]]) -> sensitivity.Groups:
        members = {line[0]: frozenset(line) for line in lines}
        return members, {name: sum(every[each] for each in line) for name, line in zip(members, lines, strict=True)}

    bands, roles = groups(names), groups([list(line) for line in zip(*names, strict=True)])
    by_sums, found = (sensitivity.told(errors, bands, roles, each) for each in ({}, {"2 b": every["2 b"]}))
    assert by_sums["2 a"] > 2 * every["2 a"]
    assert found == pytest.approx(every, rel=1e-6)


@pytest.mark.parametrize("layers", [1, 2, 3, 17, 40])
def test_every_matrix_of_any_depth_has_a_gain(layers: int) -> None:
    decoder = describe(n_layers=layers, hidden_size=32, intermediate_size=32, head_dim=8, n_vocab=32, tied=layers != 2)
    weights = RandomWeights(decoder)
    steps: list[int] = []
    found = measure(weights, Model("deep", decoder, "f32"), [[1, 2, 3, 4]], lambda: steps.append(1))
    assert set(found.gains) == {name for name, shape in decoder.tensors() if len(shape) == 2}
    assert all(np.isfinite(gain) and gain > 0 for gain in found.gains.values())
    assert len(found.alone) == sensitivity.ALONE
    assert len(steps) == sensitivity.runs(decoder) <= 1 + sensitivity.BANDS + 9 + sensitivity.ALONE
