"""The tensor gates: damage in a few bits is caught, whatever the scheme, and a sound variant of any model is not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import golden_models
import numpy as np
import pytest
from damage import DAMAGE, Damaged
from models import make_llama
from oracle_models import ORACLE_MODELS
from schemes import schemes

from edgepack.bundle.decoder import Decoder
from edgepack.errors import BuildError, UnsupportedModelError
from edgepack_packager import families, targets
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import nearest, tensors
from edgepack_packager.proof.costs import kept
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Form, Model, Request
from edgepack_packager.write import write


@contextmanager
def opened(folder: Path, context: int | None = None) -> Iterator[Weights]:
    with open_checkpoint(folder) as checkpoint:
        yield families.open_model(checkpoint, context)


def judged(target: str, scheme: str, written: Weights, source: Weights, folder: Path) -> list[str]:
    """Write a variant of some weights, and return which gates it misses against its source."""
    chosen = targets.find(target)
    model = Model("judged", source.decoder, source.dtype)
    request = Request(chosen, scheme, chosen.scheme(scheme, model))
    write(written, [request], folder, model)
    return missed(tensors.prove(chosen, folder / request.id, source, lambda _: None).findings)


# Of each target its plain 4 bits, a mixture, 8 and 16 bits; of gguf those of 3 as well.
WIDTHS = {
    "q3_k_m",
    "iq3_s",
    "q4_0",
    "q4_k_m",
    "q8_0",
    "f16",
    "4bit",
    "4bit_mixed",
    "8bit",
    "int4",
    "int4_mixed",
    "int8",
}
FAINT = {
    ("onnx", "int2"): {"noise of 3 %", "all x 1.03", "every down x 0.9"},
    ("mlx", "2bit"): {"noise of 3 %", "all x 1.03"},
    ("mlx", "3bit_g32"): {"all x 1.03"},
}
"""Damage that is small beside what a few levels lose."""


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with opened(golden_models.DEMO) as weights:
        yield weights


@pytest.mark.parametrize(("target", "scheme"), schemes())
def test_a_sound_variant_holds_in_every_scheme(target: str, scheme: str, demo: Weights, tmp_path: Path) -> None:
    assert judged(target, scheme, demo, demo, tmp_path) == []


@pytest.mark.parametrize(("target", "scheme"), [each for each in schemes() if each[1] in WIDTHS])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_caught_at_any_width(damage: str, target: str, scheme: str, demo: Weights, tmp_path: Path) -> None:
    found = judged(target, scheme, Damaged(demo, DAMAGE[damage]), demo, tmp_path)
    assert found
    assert any(" of layers." in each or " of embedding" in each for each in found)


@pytest.mark.parametrize(
    ("target", "scheme", "damage"),
    [(*few, each) for few, faint in FAINT.items() for each in DAMAGE if each not in faint],
)
def test_what_is_louder_than_what_few_bits_lose_is_caught_in_them(
    target: str, scheme: str, damage: str, demo: Weights, tmp_path: Path
) -> None:
    assert judged(target, scheme, Damaged(demo, DAMAGE[damage]), demo, tmp_path)


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize(("target", "scheme"), [("gguf", "q4_k_m"), ("gguf", "q4_0"), ("onnx", "int4_mixed")])
def test_the_parts_that_are_read_at_a_time_change_no_figure(
    target: str, scheme: str, weighed: bool, demo: Weights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = targets.find(target)
    shapes = {name: shape for name, shape in demo.decoder.tensors() if len(shape) == 2}
    counts = {name: np.linspace(1, 2, shape[1], dtype=np.float32) for name, shape in shapes.items()} if weighed else {}
    model = Model("judged", demo.decoder, demo.dtype)
    write(Damaged(demo, DAMAGE["one layer x 1.1"]), [Request(chosen, scheme, scheme)], tmp_path, model)
    read: list[int] = []
    whole = tensors.prove(chosen, tmp_path / f"{target}-{scheme}", demo, read.append, counts)
    once = len(read)
    monkeypatch.setattr(tensors, "PART", 1)
    parts = tensors.prove(chosen, tmp_path / f"{target}-{scheme}", demo, read.append, counts)
    assert len(read) > 3 * once
    assert parts == whole


@pytest.mark.parametrize("quant", ["q4", "q8", "f16"])
@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_a_sound_variant_of_every_family_holds(name: str, quant: str, tmp_path: Path) -> None:
    with opened(golden_models.folder(name, tmp_path), ORACLE_MODELS[name].context) as weights:
        for target in targets.names():
            with suppress(UnsupportedModelError):  # llama.cpp runs the windows of Phi and Qwen as full attention
                assert judged(target, quant, weights, weights, tmp_path / target) == []


class Made:
    """``Weights`` with all matrices from one recipe, which takes a generator and a shape."""

    dtype = "f32"

    def __init__(self, decoder: Decoder, recipe: Callable[[np.random.Generator, tuple[int, ...]], Float32]) -> None:
        self.decoder = decoder
        self._tensors = {
            name: recipe(np.random.default_rng([*name.encode()]), shape)
            if len(shape) == 2
            else np.ones(shape, np.float32)
            for name, shape in decoder.tensors()
        }

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._tensors[name][start:stop]


def normal(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return random.normal(0, 0.02, shape).astype(np.float32)


def heavy(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return (0.01 * random.standard_t(3, shape)).astype(np.float32)


def ternary(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return (0.05 * random.integers(-1, 2, shape)).astype(np.float32)


def on_a_grid(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    scales = random.uniform(0.5, 2, (shape[0], shape[1] // 32, 1))
    levels = np.clip(np.rint(random.normal(0, 3, (shape[0], shape[1] // 32, 32))), -8, 7)
    return (0.01 * scales * levels).reshape(shape).astype(np.float32)


def on_a_shifted_grid(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return on_a_grid(random, shape) + np.float32(0.013)


def outliers(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    rows = normal(random, shape)
    rows[:, 7] *= 100
    rows[3::5] = 0
    return rows


def tiny(random: np.random.Generator, shape: tuple[int, ...]) -> Float32:
    return normal(random, shape) * np.float32(1e-3)


@pytest.mark.parametrize(("target", "scheme"), schemes())
@pytest.mark.parametrize("recipe", [normal, heavy, ternary, on_a_grid, on_a_shifted_grid, outliers, tiny])
def test_sound_weights_of_any_shape_hold(
    recipe: Callable[[np.random.Generator, tuple[int, ...]], Float32], target: str, scheme: str, tmp_path: Path
) -> None:
    source = make_llama(tmp_path / "source", hidden=256, intermediate=512, heads=4, tokenizer=False)
    with opened(source) as weights:
        decoder = weights.decoder
    made = Made(decoder, recipe)
    assert judged(target, scheme, made, made, tmp_path / "out") == []


@pytest.mark.shared
@pytest.mark.parametrize("quant", ["q4", "q8", "f16"])
def test_a_trained_model_holds(quant: str, shared: Path, tmp_path: Path) -> None:
    with opened(shared / "models" / "stories-260K") as weights:
        for target in targets.names():
            assert judged(target, quant, weights, weights, tmp_path / target) == []


def test_a_rule_keeps_what_lies_on_its_levels() -> None:
    levels = np.arange(-8, 8, dtype=np.float32)
    rows = np.tile(levels * np.float32(0.25), (2, 2))
    for form in (Form("signed", 4, 32, "f32"), Form("affine", 4, 32, "f16"), Form("q4_0", 4, 32), Form("q5_0", 5, 32)):
        assert np.array_equal(kept(form, rows), rows), form


def test_a_kind_without_a_rule_is_said() -> None:
    with pytest.raises(BuildError, match="iq2_S"):
        kept(Form("iq2_S", 2, 32), np.zeros((1, 256), np.float32))


@pytest.mark.parametrize(("columns", "group"), [(96, 32), (80, 32), (128, 64)])
def test_the_nearest_of_a_groups_levels_is_found(columns: int, group: int) -> None:
    """Against all differences at once; a last group that is not full has zeros among its weights and levels."""
    rng = np.random.default_rng(7)
    weights = rng.standard_normal((700, columns), dtype=np.float32)
    levels = np.round(weights[::-1] * 3) / np.float32(3)
    form = Form("signed", 4, group, "f32")
    ours, theirs = (np.pad(rows, ((0, 0), (0, -columns % group))).reshape(-1, group) for rows in (weights, levels))
    least = np.square(ours[:, :, None] - theirs[:, None, :]).min(axis=2)
    assert nearest.error(form, weights, levels) == pytest.approx(least.sum(dtype=np.float64), rel=1e-12)
    levels[5, 7] = np.nan
    assert np.isnan(nearest.error(form, weights, levels))
