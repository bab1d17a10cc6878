"""Merged adapters against those who made them: PEFT's ``merge_and_unload`` and mlx-lm's ``fuse``, in float32."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from models import make_llama, make_model
from oracle_models import PHI3
from variants import nmse

from edgepack_packager import adapters, families, reference
from edgepack_packager.checkpoint import open_checkpoint

EXACT = 1e-10

LLAMA = ["q_proj", "v_proj", "o_proj", "down_proj"]
FUSED = ["qkv_proj", "gate_up_proj", "o_proj"]

CASES: Mapping[str, tuple[str, Sequence[Mapping[str, object]]]] = {
    "LoRA": ("untied", [{"target_modules": LLAMA}]),
    "LoRA of a fused model": ("phi3", [{"target_modules": FUSED}]),
    "rsLoRA": ("untied", [{"target_modules": LLAMA, "use_rslora": True, "r": 16}]),
    "DoRA": ("untied", [{"target_modules": LLAMA, "use_dora": True}]),
    "DoRA of a fused model": ("phi3", [{"target_modules": FUSED, "use_dora": True}]),
    "patterns": (
        "untied",
        [
            {
                "target_modules": LLAMA,
                "rank_pattern": {r"layers\.0\.self_attn\.(q|v)_proj": 2, "down_proj": 16},
                "alpha_pattern": {"v_proj": 3, r"model\.layers\.1\..*": 40},
            }
        ],
    ),
    "two in order": ("untied", [{"target_modules": LLAMA}, {"target_modules": ["q_proj", "k_proj"], "r": 2}]),
    "DoRA after LoRA": ("untied", [{"target_modules": LLAMA}, {"target_modules": LLAMA, "use_dora": True}]),
    "DoRA after DoRA": ("phi3", [{"target_modules": FUSED, "use_dora": True}] * 2),
    "saved modules": ("untied", [{"target_modules": LLAMA, "modules_to_save": ["lm_head", "embed_tokens", "norm"]}]),
    "an embedding": ("untied", [{"target_modules": ["embed_tokens", "lm_head", "q_proj"]}]),
    "a saved embedding that stays tied": (
        "tied",
        [{"target_modules": LLAMA, "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}],
    ),
}

MODELS: Mapping[str, Callable[[Path], Path]] = {
    "untied": lambda folder: make_llama(folder, tied=False, dtype="f32"),
    "tied": lambda folder: make_llama(folder, tied=True, dtype="f32"),
    "phi3": lambda folder: make_model(folder, PHI3),
}


def read(folder: Path, *asked: Path) -> dict[str, Any]:
    """Return all canonical tensors of a checkpoint with the adapters merged."""
    with open_checkpoint(folder) as checkpoint:
        decoder = families.describe(checkpoint.config)
        chosen = [adapters.Asked(each) for each in asked]
        with adapters.opened(chosen, families.stored(checkpoint.config, decoder)) as found:
            weights = families.open_model(checkpoint, None, found.changes)
            return {name: weights.rows(name, 0, shape[0]) for name, shape in decoder.tensors()}


def hold(found: Mapping[str, Any], expected: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Hold every tensor to what it must be, and some of them to be another than before."""
    assert found.keys() == expected.keys()
    assert max(nmse(found[name], expected[name]) for name in found) <= EXACT
    assert sum(nmse(found[name], before[name]) > 1e-4 for name in found) >= 2


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore")
def test_what_peft_merges(case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import oracle

    model, configs = CASES[case]
    folder = MODELS[model](tmp_path / "base")
    torch.manual_seed(0)
    merged, places = oracle.load(folder), []
    for number, fields in enumerate(configs):
        config = peft.LoraConfig(
            **{"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM", **fields}
        )
        trained = peft.get_peft_model(oracle.load(folder), config)
        with torch.no_grad():
            for name, each in trained.named_parameters():
                if each.requires_grad:
                    each.copy_(each * 1.1 if "magnitude" in name else torch.randn_like(each) * 0.1)
        places.append(tmp_path / f"adapter-{number}")
        trained.save_pretrained(places[-1])
        merged = peft.PeftModel.from_pretrained(merged, places[-1]).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    hold(read(folder, *places), read(tmp_path / "merged"), read(folder))


@pytest.mark.oracle
@pytest.mark.filterwarnings("ignore")
def test_an_embedding_that_stays_tied_is_what_peft_runs(tmp_path: Path) -> None:
    """PEFT 0.21 merges its delta twice, once for the head: what it runs before that is the model."""
    torch = pytest.importorskip("torch")
    peft = pytest.importorskip("peft")
    import oracle

    folder = MODELS["tied"](tmp_path / "base")
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, init_lora_weights=False, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True
    )
    trained = peft.get_peft_model(oracle.load(folder), config)
    trained.save_pretrained(tmp_path / "adapter")
    ids = [1, 5, 9, 30, 200, 77]
    with torch.no_grad():
        expected = trained(torch.tensor([ids])).logits[0].numpy()
    with open_checkpoint(folder) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
        with adapters.opened([adapters.Asked(tmp_path / "adapter")], stored) as found:
            logits = reference.logits(families.open_model(checkpoint, None, found.changes), ids)
    assert nmse(logits, expected) <= EXACT
    assert nmse(logits, oracle.logits(folder, ids)) > 1e-4


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("kind", ["lora", "dora", "full"])
def test_what_mlx_fuses(kind: str, model: str, tmp_path: Path) -> None:
    mx, utils, tuner = (pytest.importorskip(name) for name in ("mlx.core", "mlx_lm.utils", "mlx_lm.tuner.utils"))
    from mlx.utils import tree_flatten, tree_unflatten

    folder = MODELS[model](tmp_path / "base")
    place = tmp_path / "adapter"
    place.mkdir()
    parameters = {"rank": 4, "scale": 3.0, "dropout": 0.0}
    config = {"fine_tune_type": kind, "num_layers": 1, "lora_parameters": parameters, "model": str(folder)}
    (place / "adapter_config.json").write_text(json.dumps(config))
    trained, _ = utils.load_model(folder)
    trained.freeze()
    if kind == "full":
        trained.layers[-1].unfreeze()
    else:
        tuner.linear_to_lora_layers(trained, 1, parameters, use_dora=kind == "dora")
    mx.random.seed(0)
    drawn = {
        name: each * 1.1 if name.endswith(".m") else mx.random.normal(each.shape) * 0.1
        for name, each in tree_flatten(trained.trainable_parameters())
    }
    mx.save_safetensors(str(place / "adapters.safetensors"), drawn)
    fused = tuner.load_adapters(utils.load_model(folder)[0], str(place))
    modules = [(name, each.fuse()) for name, each in fused.named_modules() if hasattr(each, "fuse")]
    fused.update_modules(tree_unflatten(modules))
    tensors = {name: np.array(each) for name, each in tree_flatten(fused.parameters())}

    found = read(folder, place)
    changed = [name for name, before in read(folder).items() if not np.array_equal(before, found[name])]
    assert changed
    with open_checkpoint(folder) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
    with adapters.opened([adapters.Asked(place)], stored) as merged:
        assert merged.changes.keys() == {
            name for name in stored.shapes if nmse(tensors[name], _source(folder, name)) > 1e-8
        }
        for name, change in merged.changes.items():
            assert nmse(change(0, _source(folder, name)), tensors[name]) <= EXACT


def _source(folder: Path, name: str) -> Any:
    with open_checkpoint(folder) as checkpoint:
        return checkpoint.rows(name, 0, checkpoint.tensors[name].shape[0])
