"""A bundle with Gemma 3's whole published vocabulary and small layers, for all three targets."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from models import make_model
from oracle_models import GEMMA3

import edgepack
from edgepack_packager.build import Built, Recipe, build

pytestmark = pytest.mark.real
ROWS = 262144


@pytest.fixture(scope="module")
def built(published: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Built:
    """The bundle, proven on every engine."""
    folder = tmp_path_factory.mktemp("gemma")
    ends = {"bos_token_id": 2, "eos_token_id": [1, 106], "max_position_embeddings": 32768}
    source = make_model(folder / "gemma", GEMMA3 | {"vocab_size": ROWS} | ends, dtype="bf16", tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(published("gemma3") / name, source)
    return build(str(source), Recipe(("gguf", "mlx", "onnx"), ("q8",), context=512), folder / "gemma.edgepack")


def test_every_target_is_proven(built: Built) -> None:
    assert [variant.id for variant in built.manifest.variants] == ["gguf-q8_0", "mlx-8bit", "onnx-int8"]
    assert all(variant.proof for variant in built.manifest.variants)
    assert built.manifest.tokenizer.rows == ROWS
    assert [stop.id for stop in built.manifest.stops] == [1, 106]


def test_the_bundle_holds_one_tokenizer(built: Built) -> None:
    assert [str(path.relative_to(built.path)) for path in built.path.rglob("tokenizer.json")] == ["tokenizer.json"]
    evidence = json.loads((built.path / "evidence" / "gguf-q8_0.json").read_text())
    assert evidence["tokens"]["compared"] > 250_000


def test_no_text_gives_an_id_beyond_the_rows(built: Built) -> None:
    for variant in ("gguf-q8_0", "mlx-8bit", "onnx-int8"):
        with edgepack.load(built.path, variant=variant) as model:
            repro = model.generate("see <image_soft_token>   here\n\n\n", max_tokens=2).repro
            assert max(repro.prompt_ids) < ROWS
            assert repro.prompt_ids[0] == 2
