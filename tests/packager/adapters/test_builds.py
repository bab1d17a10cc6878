"""Builds with adapters: the merged model is proven and recorded, and how much of a change outlives the quantisation."""

from __future__ import annotations

import filecmp
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from lora import pair, write_peft
from models import make_llama
from variants import nmse

from edgepack.cli import main
from edgepack.errors import SourceError
from edgepack_packager import adapters, families, reference
from edgepack_packager.build import Built, build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.families.mapping import MappedWeights
from edgepack_packager.recipe import Recipe
from edgepack_packager.targets import find

ALL = ("gguf", "mlx", "onnx")
Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama whose rows are whole blocks of every scheme."""
    return make_llama(tmp_path_factory.mktemp("base") / "base", seed=3, hidden=256, intermediate=256)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tensors = pair(Q, 256, 256) | pair(DOWN, 256, 256)
    return write_peft(tmp_path_factory.mktemp("adapter") / "loud", tensors, {"base_model_name_or_path": "acme/other"})


@contextmanager
def weights(folder: Path, *asked: str) -> Iterator[MappedWeights]:
    with open_checkpoint(folder) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
        with adapters.opened([adapters.asked(text) for text in asked], stored) as found:
            yield families.open_model(checkpoint, None, found.changes)


@pytest.fixture(scope="module")
def built(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("built") / "built.edgepack"
    return build(str(base), Recipe(ALL, ("f32", "q8"), adapters=(f"{adapter}:0.5", str(adapter))), out)


@pytest.mark.parametrize("name", ALL)
def test_what_is_built_is_the_merged_model(name: str, base: Path, adapter: Path, built: Built) -> None:
    with weights(base, f"{adapter}:0.5", str(adapter)) as merged, weights(base) as plain:
        assert merged.changed == ["layers.0.attention.q", "layers.1.mlp.down"]
        with closing(find(name).read(built.path / "variants" / f"{name}-f32", merged.decoder)) as reader:
            for tensor, (rows, *_) in merged.decoder.tensors():
                expected = merged.rows(tensor, 0, rows)
                assert np.array_equal(reader.rows(tensor, 0, rows), expected)
                assert np.array_equal(expected, plain.rows(tensor, 0, rows)) == (tensor not in merged.changed)
        ids = [1, 5, 9, 30, 200, 77]
        assert nmse(reference.logits(merged, ids), reference.logits(plain, ids)) > 1e-3
    (variant,) = (each for each in built.manifest.variants if each.id == f"{name}-f32")
    assert variant.proof
    assert max(gate.value for gate in variant.proof.gates if gate.name.endswith("nmse")) < 1e-10


def test_the_manifest_names_the_adapters_and_their_files(adapter: Path, built: Built) -> None:
    recipe = built.manifest.producer.recipe
    assert recipe["adapters"] == ["loud:0.5", "loud"]
    assert recipe["notes"] == ["The adapter loud says that it was trained on other, and is merged into base."] * 2
    files = {file.path: file for file in built.manifest.source.files}
    assert [*files][-4:] == [
        f"adapters/{number}/{name}"
        for number in (1, 2)
        for name in ("adapter_config.json", "adapter_model.safetensors")
    ]
    data = (adapter / "adapter_model.safetensors").read_bytes()
    assert files["adapters/2/adapter_model.safetensors"].sha256 == hashlib.sha256(data).hexdigest()
    assert str(adapter.parent) not in (built.path / "manifest.json").read_text()


def test_a_rebuild_has_the_same_bytes(base: Path, adapter: Path, built: Built, tmp_path: Path) -> None:
    again = build(str(base), Recipe(ALL, ("f32", "q8"), adapters=(f"{adapter}:0.5", str(adapter))), tmp_path / "again")
    assert again.id == built.id
    assert filecmp.cmp(again.path / "manifest.json", built.path / "manifest.json", shallow=False)


def test_a_build_without_adapters_says_nothing_of_them(base: Path, tmp_path: Path) -> None:
    plain = build(str(base), Recipe(("gguf",), ("q8",)), tmp_path / "plain")
    assert "adapters" not in plain.manifest.producer.recipe
    assert "adapters" not in json.loads((plain.path / "evidence" / "gguf-q8_0.json").read_text())
    assert [file.path for file in plain.manifest.source.files] == ["config.json", "model.safetensors"]


def test_another_scale_is_another_reference(
    base: Path, adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files are the same, and what an earlier build remembers of them is not this model's."""
    monkeypatch.setenv("EDGEPACK_CACHE", str(tmp_path / "cache"))
    for scale in ("1", "2"):
        made = build(str(base), Recipe(("gguf",), ("f32",), adapters=(f"{adapter}:{scale}",)), tmp_path / scale)
        (variant,) = made.manifest.variants
        assert variant.proof
        assert next(gate.value for gate in variant.proof.gates if gate.name == "engine.nmse") < 1e-10


def test_a_wrong_adapter_is_refused_before_anything_is_written(base: Path, tmp_path: Path) -> None:
    wrong = write_peft(tmp_path / "wrong", pair(Q, 256, 128))
    with pytest.raises(SourceError, match="has the shape"):
        build(str(base), Recipe(("gguf",), ("q8",), adapters=(str(wrong),)), tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["wrong"]


def test_the_command_merges_in_order(
    base: Path, adapter: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["build", str(base), "-t", "gguf", "-q", "q8", "--unproven", "-o", str(tmp_path / "out"), "--json"]
    assert main([*asked, "--adapter", f"{adapter}:0.5", "--adapter", str(adapter)]) == 0
    assert json.loads(capsys.readouterr().out)["producer"]["recipe"]["adapters"] == ["loud:0.5", "loud"]
    assert main([*asked, "--force", "--adapter", f"{adapter}:0"]) == 2
