"""Builds to a goal: it is met, the proof holds, and the recipe in the bundle gives the same files again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgepack.bundle import receipt
from edgepack.errors import UsageError
from edgepack_packager.allocation.table import FILE
from edgepack_packager.build import Built, build
from edgepack_packager.recipe import Recipe
from edgepack_packager.source import DEMO


@pytest.fixture(scope="module")
def allocated(tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("allocated") / "bundle"
    return build(DEMO, Recipe(("gguf", "mlx"), ("gguf:auto", "gguf:2.5MB", "mlx:5.5bits"), max_kl=0.05), out)


def payload(built: Built, variant: str) -> dict[str, str]:
    return {file.path: file.sha256 for file in built.open().variant(variant).files}


def test_goals_are_met_and_proven(allocated: Built) -> None:
    found = {each.id: each for each in allocated.manifest.variants}
    assert list(found) == ["gguf-kl0.05", "gguf-2.5mb", "mlx-5.5bits"]
    assert all(each.proof for each in found.values())
    assert 5.45 < found["mlx-5.5bits"].quantization.bits <= 5.5
    assert 2_490_000 < found["gguf-2.5mb"].weights_bytes <= 2_500_000
    assert found["gguf-kl0.05"].proof.loss["text"].kl <= 0.05
    assert found["gguf-kl0.05"].quantization.bits < 5
    assert found["mlx-5.5bits"].quantization.asked == "5.5bits"
    assert allocated.manifest.producer.recipe["calibrate"] == "built-in"
    assert FILE in [file.path for file in allocated.manifest.files]


def test_a_receipt_has_the_largest_plain_scheme_of_no_more_bytes_beside_it(allocated: Built) -> None:
    found = receipt.read(allocated.open())
    assert found is not None
    beside = {each.variant: each for each in found.variants}
    schemes = {name: each.plain_scheme for name, each in beside.items()}
    assert schemes == {"gguf-kl0.05": "q3_k_m", "gguf-2.5mb": "q4_1", "mlx-5.5bits": "5bit_g128"}
    for variant in allocated.manifest.variants:
        each = beside[variant.id]
        assert each.plain is not None
        assert each.plain_bits
        larger = each.plain_bits > variant.quantization.bits
        assert larger == (each.plain_scheme == "q3_k_m")  # the smallest there is
        assert larger or each.lost.kl < each.plain.kl
    assert sorted(path.name for path in (allocated.path / "variants").iterdir()) == sorted(beside)


def test_its_recipe_gives_the_same_files_again_and_an_edited_one_others(allocated: Built, tmp_path: Path) -> None:
    text = (allocated.path / FILE).read_text("utf-8")
    (tmp_path / FILE).write_text(re.sub(r'(?m)^("layers.0.mlp.down" += )"\w+"', r'\1"8bit"', text), "utf-8")
    same = build(DEMO, Recipe(("mlx",), (), table=str(allocated.path / FILE)), tmp_path / "same")
    other = build(DEMO, Recipe(("mlx",), (), table=str(tmp_path / FILE)), tmp_path / "other")
    assert (same.manifest.producer.recipe["recipe"], same.manifest.producer.recipe["calibrate"]) == (1, "built-in")
    assert payload(same, "mlx-5.5bits") == payload(allocated, "mlx-5.5bits")
    assert payload(other, "mlx-5.5bits")["model.safetensors"] != payload(allocated, "mlx-5.5bits")["model.safetensors"]
    lines = (same.path / FILE).read_text("utf-8").splitlines()
    assert not [line for line in lines if line.startswith("goal")]
    assert [line.split("#")[0] for line in lines if line.startswith('"')] == [
        line.split("#")[0] for line in text[text.index('["mlx-5.5bits"]') :].splitlines() if line.startswith('"')
    ]


def test_a_limit_that_no_form_keeps_is_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"onnx is expected to lose [\d.e-]+ nats at least, more than 1e-06"):
        build(DEMO, Recipe(("onnx",), ("auto",), max_kl=1e-6), tmp_path / "out")
    assert not list(tmp_path.iterdir())
