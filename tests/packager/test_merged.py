"""The source of a bundle as a folder for engines that load folders: its own bytes, and adapters merged into them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from lora import pair, write_peft
from models import make_llama
from variants import nmse

from edgepack.cli import main
from edgepack.errors import SourceError, UsageError
from edgepack_packager import adapters, families, reference
from edgepack_packager.build import Built, build
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.recipe import Recipe
from edgepack_ship.exports.export import export

Q, DOWN = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"
IDS = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied Llama in three files."""
    return make_llama(tmp_path_factory.mktemp("base") / "base", seed=3, shards=3)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_peft(tmp_path_factory.mktemp("adapter") / "loud", pair(Q, 64, 64) | pair(DOWN, 64, 160))


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("plain") / "plain.edgepack"
    return build(str(base), Recipe(("gguf",), ("f32",), unproven=True), out)


@pytest.fixture(scope="module")
def built(base: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Built:
    out = tmp_path_factory.mktemp("built") / "built.edgepack"
    return build(str(base), Recipe(("gguf",), ("f32",), unproven=True, adapters=(f"{adapter}:0.5",)), out)


def _logits(folder: Path, *asked: str) -> np.ndarray:
    with open_checkpoint(folder) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
        with adapters.opened([adapters.asked(text) for text in asked], stored) as merged:
            return reference.logits(families.open_model(checkpoint, None, merged.changes), IDS)


def test_a_source_without_adapters_is_the_same_bytes(plain: Built, base: Path, tmp_path: Path) -> None:
    made = export(plain.path, "vllm", tmp_path / "out", source=str(base))
    assert made.variant is None
    for path in base.glob("*.safetensors*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    stops = [stop.id for stop in plain.manifest.stops]
    said = json.loads((tmp_path / "out/generation_config.json").read_bytes())["eos_token_id"]
    assert said == (stops if len(stops) > 1 else stops[0])


def test_an_adapter_is_merged_at_its_recorded_scale(built: Built, base: Path, adapter: Path, tmp_path: Path) -> None:
    made = export(built.path, "vllm", tmp_path / "out", source=str(base), adapters=[adapter])
    assert made.differs[0] == "Merged tensors are rounded to BF16, as the source stores them; the bundle's are not."
    merged, wanted = _logits(tmp_path / "out"), _logits(base, f"{adapter}:0.5")
    assert nmse(merged, wanted) < 1e-4 < nmse(_logits(base), wanted)
    with open_checkpoint(tmp_path / "out") as after, open_checkpoint(base) as before:
        changed = {
            name
            for name, entry in before.tensors.items()
            if not np.array_equal(before.rows(name, 0, entry.shape[0]), after.rows(name, 0, entry.shape[0]))
        }
    assert changed == {f"{Q}.weight", f"{DOWN}.weight"}


def test_another_source_is_refused(plain: Built, tmp_path: Path) -> None:
    other = make_llama(tmp_path / "other", seed=4, shards=3)
    with pytest.raises(SourceError, match="is not the file that the bundle was built from"):
        export(plain.path, "vllm", tmp_path / "out", source=str(other))
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_another_adapter_is_refused(built: Built, base: Path, tmp_path: Path) -> None:
    other = write_peft(tmp_path / "loud", pair(Q, 64, 64, seed=9))
    with pytest.raises(SourceError, match=r"adapters/1/adapter_model\.safetensors is not the file"):
        export(built.path, "vllm", tmp_path / "out", source=str(base), adapters=[other])


def test_what_has_to_be_named_is_asked_for(plain: Built, built: Built, base: Path, adapter: Path) -> None:
    out = base.parent / "out"
    with pytest.raises(UsageError, match="was built from a folder, base") as caught:
        export(plain.path, "vllm", out)
    assert caught.value.hint == "Name that folder with --source."
    with pytest.raises(UsageError, match=r"merges loud:0\.5, and 0 adapters were given"):
        export(built.path, "vllm", out, source=str(base))
    with pytest.raises(UsageError, match="merges none, and 1 adapters were given"):
        export(plain.path, "vllm", out, source=str(base), adapters=[adapter])
    with pytest.raises(UsageError, match="gets the source, not a variant"):
        export(plain.path, "vllm", out, source=str(base), variant="gguf-f32")


def test_the_command_takes_the_source_and_the_adapter(built: Built, base: Path, adapter: Path, tmp_path: Path) -> None:
    words = ["export", str(built.path), "--to", "vllm", "-o", str(tmp_path / "out")]
    assert main([*words, "--source", str(base), "--adapter", str(adapter)]) == 0
    assert (tmp_path / "out/model.safetensors.index.json").is_file()


@pytest.mark.oracle
def test_transformers_loads_what_the_reference_computes(
    built: Built, base: Path, adapter: Path, tmp_path: Path
) -> None:
    import oracle
    from transformers import AutoTokenizer, GenerationConfig

    out = tmp_path / "out"
    export(built.path, "vllm", out, source=str(base), adapters=[adapter])
    assert nmse(oracle.logits(out, IDS), _logits(out)) < 1e-10
    assert nmse(oracle.logits(out, IDS), _logits(base, f"{adapter}:0.5")) < 1e-4
    golden = built.manifest.tokenizer.probes[0]
    assert AutoTokenizer.from_pretrained(out).encode(golden.text, add_special_tokens=False) == golden.ids
    stops = [stop.id for stop in built.manifest.stops]
    assert GenerationConfig.from_pretrained(out).eos_token_id in (stops, stops[0])
