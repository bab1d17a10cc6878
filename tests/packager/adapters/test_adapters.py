"""Adapters, merged while a model is read: what they mean by the plain formula, and what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lora import PEFT_CONFIG, Float32, draw, merged, pair, write_mlx, write_peft
from models import make_llama, make_model, safetensors_bytes
from oracle_models import ORACLE_MODELS, PHI3
from variants import nmse

from edgepack.errors import EdgepackError, SourceError, UnsupportedModelError, UsageError
from edgepack_packager import adapters, families
from edgepack_packager.checkpoint import open_checkpoint

EXACT = 1e-13
"""Float32 against float64."""

LAYER = "model.layers.1.self_attn"
Q, V, HEAD, EMBEDDING = f"{LAYER}.q_proj", f"{LAYER}.v_proj", "lm_head", "model.embed_tokens"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of hidden size 64 with 4 heads of 16, 2 of them for keys and values, and a head of its own."""
    return make_llama(tmp_path_factory.mktemp("base") / "base", tied=False, seed=3)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("tied") / "tied", tied=True, seed=3)


def read(folder: Path, *asked: str) -> dict[str, Float32]:
    """Return all canonical tensors of a checkpoint with the adapters merged."""
    with open_checkpoint(folder) as checkpoint:
        decoder = families.describe(checkpoint.config)
        chosen = [adapters.asked(text) for text in asked]
        with adapters.opened(chosen, families.stored(checkpoint.config, decoder)) as found:
            weights = families.open_model(checkpoint, None, found.changes)
            return {name: weights.rows(name, 0, shape[0]) for name, shape in decoder.tensors()}


def changed(before: Mapping[str, Float32], after: Mapping[str, Float32]) -> list[str]:
    return [name for name in before if not np.array_equal(before[name], after[name])]


def test_a_lora_is_added(base: Path, tmp_path: Path) -> None:
    tensors = pair(Q, 64, 64) | pair(V, 32, 64)
    before, after = read(base), read(base, str(write_peft(tmp_path / "a", tensors)))
    assert changed(before, after) == ["layers.1.attention.q", "layers.1.attention.v"]
    for name, module in (("layers.1.attention.q", Q), ("layers.1.attention.v", V)):
        assert nmse(after[name], merged(before[name], tensors, module, 8 / 4)) < EXACT


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({"use_rslora": True}, 4, 8 / 2),
        ({"r": 8}, 8, 8 / 8),
        ({"rank_pattern": {"q_proj": 2}}, 2, 8 / 2),
        ({"rank_pattern": {"v_proj": 2, r".*\.1\.self_attn\.(q|k)_proj": 16}}, 16, 8 / 16),
        ({"rank_pattern": {"proj": 2}}, 4, 8 / 4),  # the end of a name, but not after a point
        ({"alpha_pattern": {"self_attn.q_proj": 20}}, 4, 20 / 4),
        ({"alpha_pattern": {"^model.layers.1.self_attn.q_proj": 20}, "use_rslora": True}, 4, 20 / 2),
        ({"lora_alpha": 3.5}, 4, 3.5 / 4),
    ],
)
def test_rank_and_scale_are_those_of_the_config(
    config: dict[str, object], rank: int, scale: float, base: Path, tmp_path: Path
) -> None:
    tensors = pair(Q, 64, 64, rank)
    name, before = "layers.1.attention.q", read(base)
    after = read(base, str(write_peft(tmp_path / "a", tensors, config)))
    assert nmse(after[name], merged(before[name], tensors, Q, scale)) < EXACT


@pytest.mark.parametrize("rank", [1, 33, 200])
def test_a_rank_may_be_any(rank: int, base: Path, tmp_path: Path) -> None:
    tensors = pair(Q, 64, 64, rank)
    name, before = "layers.1.attention.q", read(base)
    after = read(base, str(write_peft(tmp_path / "a", tensors, {"r": rank})))
    assert nmse(after[name], merged(before[name], tensors, Q, 8 / rank)) < EXACT


def test_dora_gives_rows_their_length(base: Path, tmp_path: Path) -> None:
    magnitude = 1 + draw("m", 64)
    tensors = pair(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": magnitude}
    name, before = "layers.1.attention.q", read(base)
    after = read(base, str(write_peft(tmp_path / "a", tensors, {"use_dora": True})))
    assert nmse(after[name], merged(before[name], tensors, Q, 2, magnitude)) < EXACT
    assert np.allclose(np.linalg.norm(after[name], axis=1), magnitude, rtol=1e-6)


def test_several_are_merged_in_order_and_scaled(base: Path, tmp_path: Path) -> None:
    magnitude = 1 + draw("m", 64)
    first, second = pair(Q, 64, 64), pair(Q, 64, 64, 8, seed=1)
    one = write_peft(tmp_path / "one", first)
    two = write_peft(tmp_path / "two", second | {f"{Q}.lora_magnitude_vector": magnitude}, {"r": 8, "use_dora": True})
    name, before = "layers.1.attention.q", read(base)
    step = merged(before[name], first, Q, -0.5 * 2).astype(np.float32)
    after = read(base, f"{one}:-0.5", f"{two}:1.5")
    assert nmse(after[name], merged(step, second, Q, 1.5 * 1, magnitude)) < EXACT
    assert nmse(read(base, f"{two}:1.5", f"{one}:-0.5")[name], after[name]) > 1e-6


def test_whole_tensors_are_replaced(base: Path, tmp_path: Path) -> None:
    head, norm = draw("head", 384, 64), draw("norm", 64)
    tensors = {"lm_head.weight": head, "model.norm.weight": norm}
    before = read(base)
    after = read(base, str(write_peft(tmp_path / "a", tensors, {"modules_to_save": ["lm_head", "norm"]})))
    assert changed(before, after) == ["norm", "head"]
    assert np.array_equal(after["head"], head)
    assert np.array_equal(after["norm"], norm)


def test_an_embedding_has_a_lora_beside_its_own_copy(base: Path, tmp_path: Path) -> None:
    whole = draw("whole", 384, 64)
    a, b = draw("a", 4, 384), draw("b", 64, 4)
    tensors = {
        f"{EMBEDDING}.lora_embedding_A": a,
        f"{EMBEDDING}.lora_embedding_B": b,
        f"{EMBEDDING}.base_layer.weight": whole,
    }
    after = read(base, str(write_peft(tmp_path / "a", tensors)))["embedding"]
    assert nmse(after, whole + 2 * (b.astype(np.float64) @ a).T) < EXACT


@pytest.mark.parametrize("prefix", ["base_model.model._orig_mod.", "", "base_model.model.model."])
def test_names_are_read_without_what_wrapped_the_model(prefix: str, base: Path, tmp_path: Path) -> None:
    module = Q.removeprefix("model.") if prefix.endswith("model.model.") else Q
    after = read(base, str(write_peft(tmp_path / "a", pair(module, 64, 64), prefix=prefix)))
    assert changed(read(base), after) == ["layers.1.attention.q"]


def test_a_fused_tensor_is_changed_in_all_its_parts(tmp_path: Path) -> None:
    folder = make_model(tmp_path / "phi3", PHI3)
    module = "model.layers.2.self_attn.qkv_proj"
    tensors = pair(module, 3 * 128, 128)
    before, after = read(folder), read(folder, str(write_peft(tmp_path / "a", tensors)))
    names = [f"layers.2.attention.{part}" for part in "qkv"]
    assert changed(before, after) == names
    whole = np.concatenate([before[name] for name in names])
    assert nmse(np.concatenate([after[name] for name in names]), merged(whole, tensors, module, 2)) < EXACT


def test_a_norm_that_is_stored_less_one_is_replaced_as_it_is_stored(tmp_path: Path) -> None:
    folder = ORACLE_MODELS["gemma3"].make(tmp_path / "gemma3")
    name = "model.layers.0.input_layernorm.weight"
    stored = draw("norm", read(folder)["layers.0.attention.norm"].shape[0])
    after = read(folder, str(write_peft(tmp_path / "a", {name: stored})))
    assert np.array_equal(after["layers.0.attention.norm"], stored + np.float32(1))


def test_a_part_that_is_not_packed_is_passed_over(tmp_path: Path) -> None:
    folder = ORACLE_MODELS["gemma3-vision"].make(tmp_path / "gemma3")
    q = read(folder)["layers.0.attention.q"].shape
    text, vision = "language_model.model.layers.0.self_attn.q_proj", "vision_tower.encoder.layers.0.self_attn.q_proj"
    place = write_peft(tmp_path / "a", pair(text, *q) | pair(vision, 64, 64))
    with open_checkpoint(folder) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
    with adapters.opened([adapters.asked(str(place))], stored) as found:
        assert [*found.changes] == ["model.layers.0.self_attn.q_proj.weight"]
        assert re.search("1 tensors of the adapter a are passed over, such as vision_tower", found.notes[0])


MLX_Q = {f"{Q}.lora_a": draw("a", 64, 4), f"{Q}.lora_b": draw("b", 4, 64)}


def as_peft(tensors: Mapping[str, Float32], module: str) -> dict[str, Float32]:
    return {f"{module}.lora_{letter.upper()}.weight": tensors[f"{module}.lora_{letter}"].T for letter in "ab"}


def test_an_adapter_of_mlx(base: Path, tmp_path: Path) -> None:
    before = read(base)
    after = read(base, str(write_mlx(tmp_path / "a", MLX_Q)))
    assert changed(before, after) == ["layers.1.attention.q"]
    name = "layers.1.attention.q"
    assert nmse(after[name], merged(before[name], as_peft(MLX_Q, Q), Q, 2)) < EXACT
    magnitude = 1 + draw("m", 64)
    dora = write_mlx(tmp_path / "dora", MLX_Q | {f"{Q}.m": magnitude}, {"fine_tune_type": "dora"})
    assert nmse(read(base, str(dora))[name], merged(before[name], as_peft(MLX_Q, Q), Q, 2, magnitude)) < EXACT


def test_an_embedding_of_mlx_is_also_the_head(tied: Path, tmp_path: Path) -> None:
    a, b = draw("a", 384, 4), draw("b", 4, 64)
    place = write_mlx(tmp_path / "a", {f"{EMBEDDING}.lora_a": a, f"{EMBEDDING}.lora_b": b})
    assert nmse(read(tied, str(place))["embedding"], read(tied)["embedding"] + 2 * (a.astype(float) @ b)) < EXACT


def test_a_full_fine_tune_of_mlx_replaces(base: Path, tmp_path: Path) -> None:
    weight = draw("weight", 64, 64)
    after = read(base, str(write_mlx(tmp_path / "a", {f"{Q}.weight": weight}, {"fine_tune_type": "full"})))
    assert np.array_equal(after["layers.1.attention.q"], weight)


def test_the_bits_do_not_depend_on_the_blocks(base: Path, tmp_path: Path) -> None:
    tensors = pair(Q, 64, 64, 40) | {f"{Q}.lora_magnitude_vector": 1 + draw("m", 64)}
    place = write_peft(tmp_path / "a", tensors, {"r": 40, "use_dora": True})
    whole = read(base, str(place))["layers.1.attention.q"]
    with open_checkpoint(base) as checkpoint:
        stored = families.stored(checkpoint.config, families.describe(checkpoint.config))
        with adapters.opened([adapters.asked(str(place))], stored) as found:
            weights = families.open_model(checkpoint, None, found.changes)
            rows = [weights.rows("layers.1.attention.q", row, row + 1) for row in range(64)]
    assert np.array_equal(np.concatenate(rows), whole)


def test_sums_are_exact_whatever_their_order() -> None:
    """A permutation of the rank is another order of every sum: BLAS may choose any."""
    from edgepack_packager.adapters.change import _lengths, _product

    left, right = draw("l", 300, 150, deviation=30), draw("r", 150, 700)
    order = np.random.default_rng(0).permutation(150)
    assert np.array_equal(_product(left, right, 1.5), _product(left[:, order], right[order], 1.5))
    assert nmse(_product(left, right, 1.5), 1.5 * (left.astype(np.float64) @ right)) < 1e-12  # of 22 bits
    assert not np.array_equal(left @ right, left[:, order] @ right[order])  # which float32 does not promise
    order = np.random.default_rng(0).permutation(700)
    rows = draw("rows", 2000, 700)
    assert np.array_equal(_lengths(rows), _lengths(np.ascontiguousarray(rows[:, order])))
    assert nmse(_lengths(rows), np.linalg.norm(rows.astype(np.float64), axis=1)) < EXACT


BOTH = {"model.embed_tokens.weight": draw("e", 384, 64), "lm_head.weight": draw("e", 384, 64)}


def test_a_tied_head_may_repeat_the_embedding(tied: Path, tmp_path: Path) -> None:
    config = {"modules_to_save": ["embed_tokens", "lm_head"]}
    after = read(tied, str(write_peft(tmp_path / "a", BOTH, config)))
    assert np.array_equal(after["embedding"], BOTH["lm_head.weight"])
    alone = {"model.embed_tokens.weight": BOTH["lm_head.weight"]}
    after = read(tied, str(write_peft(tmp_path / "b", alone, {"ensure_weight_tying": True})))
    assert np.array_equal(after["embedding"], BOTH["lm_head.weight"])


TIED = {
    "another head": (BOTH | {"lm_head.weight": draw("other", 384, 64)}, "changes lm_head.weight otherwise"),
    "a head alone": ({"lm_head.weight": draw("e", 384, 64)}, "changes lm_head.weight otherwise"),
    "a LoRA of the head": (pair("lm_head", 384, 64), "changes lm_head.weight otherwise"),
    "the embedding alone": (
        {"model.embed_tokens.weight": draw("e", 384, 64)},
        "changes model.embed_tokens.weight otherwise than lm_head.weight",
    ),
    "a head of another width": (BOTH | {"lm_head.weight": draw("e", 384, 65)}, "has the shape"),
}


@pytest.mark.parametrize("case", TIED)
def test_a_tied_model_gets_no_head_of_its_own(case: str, tied: Path, tmp_path: Path) -> None:
    tensors, message = TIED[case]
    with pytest.raises(EdgepackError, match=message):
        read(tied, str(write_peft(tmp_path / "a", tensors)))


def peft(tensors: Mapping[str, Float32], **config: object) -> Callable[[Path], object]:
    return lambda folder: write_peft(folder, tensors, config)


def mlx(tensors: Mapping[str, Float32], **config: object) -> Callable[[Path], object]:
    return lambda folder: write_mlx(folder, tensors, config)


def bare(**files: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        folder.mkdir()
        for name, text in files.items():
            (folder / name.replace("__", ".")).write_text(text)

    return write


QA, QB = f"{Q}.lora_A.weight", f"{Q}.lora_B.weight"
NAN = pair(Q, 64, 64) | {QA: np.full((4, 64), np.nan, np.float32)}
REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (bare(), "has no adapter_config.json"),
    "a model": (bare(config__json="{}"), "is a model, not an adapter"),
    "a pickle": (bare(adapter_config__json='{"peft_type": "LORA"}', adapter_model__bin=""), "a pickle"),
    "a config alone": (bare(adapter_config__json='{"peft_type": "LORA"}'), "neither adapter_model.safetensors nor"),
    "no kind": (bare(adapter_config__json="{}"), "of neither PEFT nor mlx-lm"),
    "no JSON": (bare(adapter_config__json="{"), "is not valid JSON"),
    "no safetensors": (
        bare(adapter_config__json='{"peft_type": "LORA"}', adapter_model__safetensors="x" * 99),
        "adapter_model.safetensors",
    ),
    "no tensor": (peft({}), "holds no tensor"),
    "IA3": (peft(pair(Q, 64, 64), peft_type="IA3"), "of the type 'IA3'"),
    "LoHa": (peft({f"{Q}.hada_w1_a": draw("x", 4, 4)}, peft_type="LOHA"), "of the type 'LOHA'"),
    "AdaLoRA": (peft(pair(Q, 64, 64), peft_type="ADALORA"), "of the type 'ADALORA'"),
    "biases": (peft(pair(Q, 64, 64), bias="all"), "bias is 'all'"),
    "PiSSA": (peft(pair(Q, 64, 64), init_lora_weights="pissa_niter_4"), "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": (peft(pair(Q, 64, 64), init_lora_weights="olora"), "init_lora_weights is 'olora'"),
    **{
        field: (peft(pair(Q, 64, 64), **{field: value}), f"{field} is set")
        for field, value in {
            "fan_in_fan_out": True,
            "use_bdora": True,
            "use_qalora": True,
            "lora_bias": True,
            "layer_replication": [[0, 2], [1, 2]],
            "target_parameters": ["experts.down_proj"],
            "trainable_token_indices": [1, 2],
            "alora_invocation_tokens": [1],
            "megatron_config": {"x": 1},
            "a_field_of_tomorrow": 1,
        }.items()
    },
    "a rank of another training": (peft(pair(Q, 64, 64), r=8), "has rank 8, in adapter_model.safetensors 4"),
    "a rank that is no number": (peft(pair(Q, 64, 64), r="4"), "r must be a number above 0"),
    "an alpha that is no number": (peft(pair(Q, 64, 64), lora_alpha=None), "lora_alpha must be a number above 0"),
    "an alpha that is true": (
        peft(pair(Q, 64, 64), alpha_pattern={"q_proj": True}),
        "alpha_pattern.* must be a number",
    ),
    "a pattern that is none": (peft(pair(Q, 64, 64), alpha_pattern={"(": 2}), "is no pattern"),
    "a pattern that takes for ever": (peft(pair(Q, 64, 64), alpha_pattern={"(.*)*x": 2}), "which is not read"),
    "patterns that are none": (peft(pair(Q, 64, 64), rank_pattern=[1]), "rank_pattern must be an object"),
    "a switch that is none": (peft(pair(Q, 64, 64), use_rslora="yes"), "use_rslora must be true or false"),
    "A alone": (peft({QA: pair(Q, 64, 64)[QA]}), "q_proj lacks its lora_B"),
    "DoRA without lengths": (peft(pair(Q, 64, 64), use_dora=True), "lacks its lora_magnitude_vector"),
    "lengths without DoRA": (
        peft(pair(Q, 64, 64) | {f"{Q}.lora_magnitude_vector": draw("m", 64)}),
        "has, and use_dora does not ask for, its lora_magnitude_vector",
    ),
    "another module": (
        peft(pair(f"{LAYER}.qkv_proj", 64, 64)),
        "changes model.layers.1.self_attn.qkv_proj.weight, which",
    ),
    "a layer more": (peft(pair("model.layers.2.self_attn.q_proj", 64, 64)), "which the model does not have"),
    "a tensor that is none": (peft(pair(Q, 64, 64) | {f"{Q}.vera_lambda": draw("x", 4)}), "is no part of a LoRA"),
    "another width": (
        peft(pair(Q, 64, 96)),
        r"lora_A.weight has the shape \[4, 96\]; for this model it must have \[4, 64\]",
    ),
    "another height": (peft(pair(Q, 96, 64)), r"lora_B.weight has the shape \[96, 4\]"),
    "ranks that differ": (peft(pair(Q, 64, 64) | {QB: draw("b", 64, 5)}), r"has the shape \[64, 5\]"),
    "no rank": (peft(pair(Q, 64, 64, 0)), "has rank 4, in adapter_model.safetensors 0"),
    "three axes": (peft(pair(Q, 64, 64) | {QB: draw("b", 64, 4, 1)}), "has the shape"),
    "a number": (peft(pair(Q, 64, 64) | {QA: np.ones((), np.float32)}), "rank 4, in adapter_model.safetensors 0"),
    "NaN": (peft(NAN), "lora_A.weight has a NaN or an infinity"),
    "rows for more tokens": (
        peft({"lm_head.weight": draw("h", 387, 64)}, modules_to_save=["lm_head"]),
        "has 3 rows more than the model's vocabulary",
    ),
    "a module that was not saved": (peft(pair(Q, 64, 64), modules_to_save=["lm_head"]), "names lm_head, which"),
    "twice": (
        peft(pair(Q, 64, 64) | pair(f"_orig_mod.{Q}", 64, 64)),
        "changes model.layers.1.self_attn.q_proj.weight twice",
    ),
    "two of one part": (
        peft(pair(Q, 64, 64) | {f"{Q}.lora_A.default.weight": draw("x", 4, 64)}),
        "two tensors are the lora_A",
    ),
    "mlx, another way to tune": (mlx(MLX_Q, fine_tune_type="soft"), "fine_tune_type is 'soft'"),
    "mlx, PEFT's alpha": (mlx(MLX_Q, lora_parameters={"rank": 4, "alpha": 8}), "lora_parameters.scale must be"),
    "mlx, another rank": (mlx(MLX_Q, lora_parameters={"rank": 8, "scale": 8}), "says rank 8, .* has 4"),
    "mlx, no DoRA": (mlx(MLX_Q, fine_tune_type="dora"), "has not all that 'dora' has"),
    "mlx, half": (mlx({f"{Q}.lora_a": draw("a", 64, 4)}), "has not all that 'lora' has, and no more: lora_a"),
    "mlx, a weight": (mlx({f"{Q}.weight": draw("a", 64, 64)}), "is no part of 'lora'"),
    "mlx, experts": (
        mlx({f"{Q}.lora_a": draw("a", 8, 4, 64), f"{Q}.lora_b": draw("b", 8, 64, 4)}),
        "says rank 4|has the shape",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_named_before_the_model_is_read(case: str, base: Path, tmp_path: Path) -> None:
    write, message = REFUSED[case]
    write(tmp_path / "adapter")
    config = json.loads((base / "config.json").read_text())
    stored = families.stored(config, families.describe(config))
    with (
        pytest.raises((SourceError, UnsupportedModelError), match=message) as refused,
        adapters.opened([adapters.asked(str(tmp_path / "adapter"))], stored),
    ):
        pass
    assert refused.value.hint
    assert len(str(refused.value)) < 1000


def test_a_type_that_is_no_float_is_refused(base: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", pair(Q, 64, 64))
    data = safetensors_bytes({f"base_model.model.{name}": each for name, each in pair(Q, 64, 64).items()}, "f32")
    (folder / "adapter_model.safetensors").write_bytes(data.replace(b'"F32"', b'"I32"'))
    with pytest.raises(UnsupportedModelError, match="is stored as I32"):
        read(base, str(folder))


def test_what_becomes_infinite_is_the_adapters_fault(base: Path, tmp_path: Path) -> None:
    tensors = {name: each * np.float32(1e25) for name, each in pair(Q, 64, 64).items()}
    with pytest.raises(SourceError, match=r"merged into model\.layers\.1\.self_attn\.q_proj\.weight, makes it a NaN"):
        read(base, str(write_peft(tmp_path / "a", tensors)))


def test_a_scale_of_what_is_replaced_has_no_meaning(base: Path, tmp_path: Path) -> None:
    folder = write_peft(tmp_path / "a", {"lm_head.weight": draw("h", 384, 64)}, {"modules_to_save": ["lm_head"]})
    with pytest.raises(UsageError, match=r"replaces lm_head\.weight whole"):
        read(base, f"{folder}:0.5")


def test_what_another_changed_is_not_replaced(base: Path, tmp_path: Path) -> None:
    whole = write_peft(tmp_path / "whole", {"lm_head.weight": draw("h", 384, 64)}, {"modules_to_save": ["lm_head"]})
    lora = write_peft(tmp_path / "lora", pair("lm_head", 384, 64))
    with pytest.raises(SourceError, match=r"whole replaces lm_head\.weight, which .*lora before it changes"):
        read(base, str(lora), str(whole))
    assert changed(read(base), read(base, str(whole), str(lora))) == ["head"]


@pytest.mark.parametrize(
    ("text", "folder", "scale"),
    [("a/b", "a/b", 1.0), ("a/b:0.5", "a/b", 0.5), ("a:-2", "a", -2.0), ("C:\\a", "C:\\a", 1.0), ("a:1e-1", "a", 0.1)],
)
def test_a_scale_stands_after_the_folder(text: str, folder: str, scale: float) -> None:
    assert adapters.asked(text) == adapters.Asked(Path(folder), scale)


@pytest.mark.parametrize("scale", ["0", "1e400", "1.2.3", "-0.0"])
def test_a_scale_is_a_number_that_is_not_0(scale: str) -> None:
    with pytest.raises(UsageError, match="cannot be the scale of the adapter a"):
        adapters.asked(f"a:{scale}")


def test_a_folder_with_a_colon_is_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a:0.5").mkdir()
    assert adapters.asked(str(tmp_path / "a:0.5")) == adapters.Asked(tmp_path / "a:0.5")


@pytest.mark.parametrize(("said", "base_name", "told"), [("acme/Base", "base", False), ("/home/me/base", "x/y", True)])
def test_another_base_is_told_without_its_path(
    said: str, base_name: str, told: bool, base: Path, tmp_path: Path
) -> None:
    folder = write_peft(tmp_path / "a", pair(Q, 64, 64), {"base_model_name_or_path": said})
    config: dict[str, Any] = json.loads((base / "config.json").read_text())
    stored = families.stored(config, families.describe(config))
    with adapters.opened([adapters.asked(str(folder))], stored, base_name) as found:
        expected = ["The adapter a says that it was trained on base, and is merged into y."] if told else []
        assert found.notes == expected


def test_the_fields_that_peft_writes_by_default_are_known(base: Path, tmp_path: Path) -> None:
    assert changed(read(base), read(base, str(write_peft(tmp_path / "a", pair(Q, 64, 64), PEFT_CONFIG))))
