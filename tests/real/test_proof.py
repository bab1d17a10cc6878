"""The proof on a trained model: damage in 4 bits is caught on each target, and no sound variant is refused."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import DAMAGE, Change, Damaged
from msgspec.structs import replace

from edgepack_packager import families, targets
from edgepack_packager.build import build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import Model, Request
from edgepack_packager.write import write

pytestmark = pytest.mark.real

LAYERS, ROWS = 4, 4096

FOUR_BITS = [
    (name, scheme) for name in targets.names() for scheme, bits in targets.find(name).schemes.items() if bits == 4
]


FAINT = ("all x 1.03", "iq4_nl")
"""Heard in the embedding, which has more bits, and not in layers: weights on an even grid cost iq4_nl's uneven levels
so much that 3 % on top are within what the proof allows."""


class Beginning:
    """The first layers of a model, and the first rows of its vocabulary: enough of it to be damaged many times."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.decoder = replace(weights.decoder, n_layers=LAYERS, n_vocab=ROWS)
        self.dtype = weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._weights.rows(name, start, stop)


def unchanged(weights: Weights, name: str, start: int, stop: int) -> Float32:
    return weights.rows(name, start, stop)


@pytest.fixture(scope="module", params=["smollm2", "smollm2_off"])
def weights(request: pytest.FixtureRequest) -> Iterator[Weights]:
    with open_checkpoint(request.getfixturevalue(request.param)) as checkpoint:
        yield families.open_model(checkpoint)


def judged(target: str, quant: str, source: Weights, change: Change, folder: Path) -> list[str]:
    """Return which tensor gates a variant of damaged weights misses."""
    chosen = targets.find(target)
    model = Model("judged", source.decoder, source.dtype)
    request = Request(chosen, quant, chosen.scheme(quant, model))
    write(Damaged(source, change), [request], folder, model)
    return missed(tensors.prove(chosen, folder / request.id, source, lambda _: None).findings)


@pytest.mark.parametrize(("target", "scheme"), FOUR_BITS)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_in_four_bits_is_caught(damage: str, target: str, scheme: str, weights: Weights, tmp_path: Path) -> None:
    found = judged(target, scheme, Beginning(weights), DAMAGE[damage], tmp_path)
    heard = ("row ", "rows ") if (damage, scheme) == FAINT else (" of layers.",)
    assert any(place in each for place in heard for each in found), found


@pytest.mark.parametrize("target", targets.names())
@pytest.mark.parametrize("quant", ["q4", "q8"])
def test_a_sound_variant_holds(quant: str, target: str, weights: Weights, tmp_path: Path) -> None:
    assert judged(target, quant, weights, unchanged, tmp_path) == []


@pytest.mark.parametrize(("target", "scheme"), FOUR_BITS)
def test_a_sound_beginning_holds_in_every_scheme_of_four_bits(
    target: str, scheme: str, weights: Weights, tmp_path: Path
) -> None:
    assert judged(target, scheme, Beginning(weights), unchanged, tmp_path) == []


def test_the_default_build_holds_and_tells_what_it_lost(smollm2_off: Path, tmp_path: Path) -> None:
    built = build(str(smollm2_off), Recipe(tuple(targets.names()), ("q4",)), tmp_path / "out")
    assert {variant.target for variant in built.manifest.variants if variant.proof} == set(targets.names())
    for variant in built.manifest.variants:
        assert variant.proof
        assert 0 < variant.proof.loss["text"].kl < 1
        assert 0 < variant.proof.loss["text"].kl_error < variant.proof.loss["text"].kl
    assert not (tmp_path / "out.failed").exists()
