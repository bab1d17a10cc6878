"""The MLX target for every family: the model file that a payload names, and its bytes against mlx_lm.convert's."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import oracle_models
import pytest
from decoders import LFM2, QWEN3_5, Positions, RandomWeights, changed, describe
from models import make_llama, make_model
from oracle_models import ORACLE_MODELS

from edgepack.bundle.decoder import Convolution, Temperature
from edgepack.bundle.rope import LinearScaling, Llama3Scaling, LongRopeScaling, Rope, YarnScaling
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Weights, blocks
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Model, Written
from edgepack_packager.targets.mlx import MlxTarget
from edgepack_packager.targets.mlx.model_types import choose
from edgepack_packager.text import read_text

# Each family's fields of config.json.
FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "phi3": oracle_models.PHI3,
    "phi4": oracle_models.PHI4,
    "gemma2": oracle_models.GEMMA2,
    "gemma3": oracle_models.GEMMA3,
    "gemma4": oracle_models.GEMMA4,
    "qwen2": oracle_models.QWEN2,
    "qwen3": oracle_models.QWEN3,
    "olmo2": oracle_models.OLMO2,
    "olmo3": oracle_models.OLMO3,
    "exaone4": oracle_models.EXAONE4,
    "seed_oss": oracle_models.SEED_OSS,
    "hunyuan": oracle_models.HUNYUAN,
    "lfm2": oracle_models.LFM2,
    "stablelm": oracle_models.STABLELM,
}


def write(weights: Weights, folder: Path, scheme: str, **fields: Any) -> Written:
    folder.mkdir()
    writer = MlxTarget().open(folder, Model("tiny", weights.decoder, weights.dtype, **fields), scheme)
    for name, start, stop in blocks(weights.decoder):
        writer.write(name, start, weights.rows(name, start, stop))
    return writer.finish()


def pack(source: Path, out: Path, scheme: str) -> None:
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        text = read_text(source, checkpoint.config, weights.decoder)
        write(weights, out, scheme, config=checkpoint.config, text=text)


def load(folder: Path) -> dict[str, mx.array]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in mx.load(str(file)).items()}


def config_of(folder: Path) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return config


# Against mlx_lm.convert ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=FAMILIES)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bfloat16 checkpoint."""
    fields = {**FAMILIES[request.param], "torch_dtype": "bfloat16"}
    return make_model(tmp_path_factory.mktemp(request.param) / "model", fields, seed=31, dtype="bf16")


def convert(source: Path, out: Path, **options: Any) -> dict[str, mx.array]:
    from mlx_lm import convert as mlx_lm_convert

    mlx_lm_convert(str(source), str(out), **options)
    return load(out)


def differing(ours: dict[str, mx.array], theirs: dict[str, mx.array], added: float) -> list[str]:
    """Return the names of the tensors that differ in type, shape or a bit; of norms, in a bit of the gain."""
    assert ours.keys() == theirs.keys()
    found = []
    for name, mine in ours.items():
        yours = theirs[name]
        if name.endswith("norm.weight"):
            mine, yours = (array.astype(mx.float32) + added for array in (mine, yours))
        if (mine.dtype, mine.shape) != (yours.dtype, yours.shape) or not mx.array_equal(mine, yours).item():
            found.append(name)
    return found


def test_payload_is_that_of_mlx_lm_convert(source: Path, tmp_path: Path) -> None:
    wide = "gemma" in config_of(source)["model_type"]
    schemes: dict[str, dict[str, Any]] = {
        "4bit": {"quantize": True, "q_bits": 4},
        "8bit": {"quantize": True, "q_bits": 8},
        "bf16": {"dtype": "bfloat16"},
        "f32": {"dtype": "float32"},
    }
    if not wide:
        schemes["f16"] = {"dtype": "float16"}
        schemes["8bit"] |= {"dtype": "float16"}
    for scheme, options in schemes.items():
        theirs = convert(source, tmp_path / f"theirs-{scheme}", **options)
        pack(source, tmp_path / scheme, scheme)
        expected = [name for name in theirs if theirs[name].dtype == mx.uint32] if wide and scheme == "8bit" else []
        assert sorted(differing(load(tmp_path / scheme), theirs, float(wide))) == sorted(expected), scheme


def test_payload_with_layers_without_rope_is_that_of_mlx_lm_convert(tmp_path: Path) -> None:
    rope_layers = [1, 1, 0, 1]
    smollm3 = {"model_type": "smollm3", "no_rope_layers": rope_layers}
    make_llama(tmp_path / "llama", hidden=128, layers=4)
    make_llama(tmp_path / "smollm3", hidden=128, layers=4, config=smollm3)
    with open_checkpoint(tmp_path / "llama") as checkpoint:
        weights = families.open_model(checkpoint)
        rope = weights.decoder.ropes[0]
        pattern = tuple(Positions(rope if has else None) for has in rope_layers)
        weights.decoder = changed(weights.decoder, pattern=pattern)
        for scheme, options in {"4bit": {"quantize": True, "q_bits": 4}, "f16": {"dtype": "float16"}}.items():
            write(weights, tmp_path / scheme, scheme)
            theirs = convert(tmp_path / "smollm3", tmp_path / f"theirs-{scheme}", **options)
            assert differing(load(tmp_path / scheme), theirs, 0.0) == []
    config = config_of(tmp_path / "4bit")
    assert (config["model_type"], config["no_rope_layers"]) == ("smollm3", rope_layers)


def test_mlx_lm_loads_the_folder_with_the_tokenizer_beside_it(source: Path, tmp_path: Path) -> None:
    import mlx_lm

    pack(source, tmp_path / "v", "4bit")
    shutil.copy(source / "tokenizer.json", tmp_path / "v")
    model, tokenizer = mlx_lm.load(str(tmp_path / "v"))
    assert model.model_type == config_of(source)["model_type"]
    assert tokenizer.eos_token_ids == {0, 2}
    assert tokenizer.decode(tokenizer.encode("a box of apples")) == "a box of apples"


# Models whose computation is that of another family's file; mlx-lm's llama has windows, transformers' has none.
OF_ANOTHER_FILE = ("ministral", "ernie4.5", "helium", "granite4")
READ_AS = {"ministral": {"architectures": ["MinistralForCausalLM"], "model_type": "ministral"}}


@pytest.mark.parametrize("name", ORACLE_MODELS)
def test_config_describes_the_decoder_again(name: str, tmp_path: Path) -> None:
    """What the writer says in config.json, the family reads back: no feature is lost or spelled otherwise."""
    fixture = ORACLE_MODELS[name]
    with open_checkpoint(fixture.make(tmp_path / "source")) as checkpoint:
        weights = families.open_model(checkpoint, fixture.context)
        write(weights, tmp_path / "v", "f32", config=checkpoint.config)
        decoder = weights.decoder
    written = config_of(tmp_path / "v")
    # The payload is for its context; the embeddings' scale is rounded to the type that a file names.
    named = READ_AS.get(name, {})
    again = families.describe({**written, "dtype": "bfloat16", "torch_dtype": "bfloat16", **named}, decoder.context)
    changed = {"trained_context": again.trained_context, "embedding_scale": again.embedding_scale}
    if name in OF_ANOTHER_FILE:
        changed |= {"family": again.family, "architecture": again.architecture}
    assert again == msgspec.structs.replace(decoder, **changed)


# The model file --------------------------------------------------------------------------------------------------

PLAIN, GLOBAL = Rope(10000.0, 16), Rope(1000000.0, 16)
LOCAL = Positions(PLAIN, 24)
SCALED = Rope(10000.0, 16, LinearScaling(4.0))
LLAMA3 = Rope(10000.0, 16, Llama3Scaling(8.0, 1.0, 4.0, 64))
LONG = Rope(10000.0, 16, LongRopeScaling((1.0,) * 8, 1.2, 64))
YARN = Rope(10000.0, 16, YarnScaling(4.0, 64, magnitude=1.1))
OLMO: dict[str, Any] = {"norms": "after", "qk_norm": "width", "tied": False}
GEMMA: dict[str, Any] = {"activation": "gelu_tanh", "norms": "both", "embedding_scale": 8.0}
GEMMA2: dict[str, Any] = {**GEMMA, "attention_softcap": 50.0, "logits_softcap": 30.0}
GEMMA3: dict[str, Any] = {**GEMMA, "qk_norm": "head"}

CHOICES: list[tuple[dict[str, Any], str]] = [
    ({}, "llama"),
    ({"rope": LLAMA3, "head_dim": 16, "n_heads": 8, "tied": False}, "llama"),
    ({"qkv_bias": True, "output_bias": True, "mlp_bias": True}, "llama"),
    ({"pattern": (LOCAL,)}, "phi3"),
    ({"pattern": (LOCAL,), "mlp_bias": True}, "edgepack"),
    ({"pattern": (Positions(PLAIN), Positions(None))}, "smollm3"),
    ({"pattern": (Positions(PLAIN), Positions(None)), "qk_norm": "head"}, "edgepack"),
    ({"qkv_bias": True}, "qwen2"),
    ({"qkv_bias": True, "mlp_bias": True}, "edgepack"),
    ({"qkv_bias": True, "head_dim": 32}, "edgepack"),
    ({"qkv_bias": True, "head_dim": 32, "tied": False}, "seed_oss"),
    ({"output_bias": True, "tied": False}, "seed_oss"),
    ({"qkv_bias": True, "tied": False, "norms": "after"}, "edgepack"),
    ({"output_bias": True}, "edgepack"),
    ({"activation": "gelu_tanh", "embedding_scale": 8.0}, "edgepack_gemma"),
    ({"activation": "gelu_tanh", "embedding_scale": 8.0, "mlp_bias": True}, "edgepack"),
    ({"qk_norm": "head", "head_dim": 32, "rope": Rope(10000.0, 32)}, "qwen3"),
    ({"qk_norm": "head", "qkv_bias": True}, "edgepack"),
    ({"rope": LONG}, "phi3"),
    ({"rope": Rope(10000.0, 12)}, "phi3"),
    ({"rope": Rope(10000.0, 12, LinearScaling(4.0))}, "edgepack"),
    ({"rope": LONG, "qk_norm": "head"}, "edgepack"),
    ({"attention_scale": 0.3}, "granite"),
    ({"attention_scale": 0.3, "head_dim": 32}, "edgepack"),
    ({"attention_scale": 0.3, "pattern": (LOCAL, Positions(PLAIN))}, "edgepack"),
    ({"embedding_scale": 8.0, "mlp_bias": True}, "granite"),
    ({"residual_scale": 0.3, "logits_scale": 0.5, "rope": LLAMA3}, "granite"),
    ({"residual_scale": 0.3, "qk_norm": "head"}, "edgepack"),
    ({"residual_scale": 0.3, "norms": "both"}, "edgepack"),
    ({"residual_scale": 0.3, "pattern": (Positions(None),)}, "granitemoehybrid"),
    ({"residual_scale": 0.3, "pattern": (Positions(PLAIN), Positions(None))}, "edgepack"),
    ({"pattern": (Positions(None),)}, "smollm3"),
    ({"rope": YARN}, "llama"),
    ({"rope": YARN, "pattern": (Positions(YARN), Positions(None))}, "smollm3"),
    ({"rope": YARN, "qkv_bias": True}, "qwen2"),
    ({"rope": YARN, "qk_norm": "head"}, "qwen3"),
    ({"rope": Rope(10000.0, 16, YarnScaling(4.0, 64, whole=False))}, "edgepack"),
    ({"rope": Rope(10000.0, 16, YarnScaling(1.0, 64, magnitude=1.1))}, "edgepack"),
    ({"rope": Rope(10000.0, 16, YarnScaling(1.0, 64))}, "llama"),
    ({**OLMO, "rope": LLAMA3, "head_dim": 16, "mlp_bias": True}, "olmo2"),
    ({**OLMO, "norms": "before"}, "edgepack"),
    ({**OLMO, "norms": "both"}, "edgepack"),
    ({**OLMO, "qk_norm": None}, "edgepack"),
    ({**OLMO, "pattern": (LOCAL,)}, "edgepack"),
    ({**OLMO, "pattern": (LOCAL, Positions(PLAIN))}, "olmo3"),
    ({**OLMO, "pattern": (LOCAL, Positions(YARN))}, "olmo3"),
    ({**OLMO, "pattern": (Positions(YARN, 24), Positions(YARN))}, "edgepack"),
    ({**OLMO, "pattern": (LOCAL, Positions(GLOBAL))}, "edgepack"),
    ({**OLMO, "pattern": (Positions(PLAIN), LOCAL)}, "edgepack"),
    ({**OLMO, "pattern": (LOCAL, Positions(None))}, "edgepack"),
    ({**OLMO, "pattern": (LOCAL, Positions(PLAIN)), "mlp_bias": True}, "edgepack"),
    ({**OLMO, "qk_norm": "head"}, "exaone4"),
    ({**OLMO, "qk_norm": "head", "pattern": (Positions(LLAMA3, 24), Positions(None))}, "exaone4"),
    ({**OLMO, "qk_norm": "head", "pattern": (Positions(None), LOCAL)}, "exaone4"),
    ({**OLMO, "qk_norm": "head", "pattern": (LOCAL, Positions(PLAIN))}, "edgepack"),
    ({**OLMO, "qk_norm": "head", "pattern": (Positions(PLAIN), Positions(None))}, "edgepack"),
    ({**OLMO, "qk_norm": "head", "pattern": (Positions(None, 24), Positions(PLAIN))}, "edgepack"),
    ({**OLMO, "qk_norm": "head", "qkv_bias": True, "output_bias": True}, "edgepack"),
    ({**OLMO, "qk_norm": "rotated"}, "edgepack"),
    ({"qk_norm": "rotated", "head_dim": 32, "tied": False}, "hunyuan_v1_dense"),
    ({"qk_norm": "rotated", "rope": LLAMA3}, "edgepack"),
    ({"qk_norm": "rotated", "mlp_bias": True}, "edgepack"),
    ({"temperature": Temperature(0.1, 64)}, "ministral3"),
    ({"temperature": Temperature(0.1, 64), "rope": YARN, "head_dim": 16}, "ministral3"),
    ({"temperature": Temperature(0.1, 64), "pattern": (LOCAL, Positions(PLAIN))}, "ministral3"),
    ({"temperature": Temperature(0.1, 63), "rope": YARN}, "edgepack"),
    ({"temperature": Temperature(0.1, 63), "rope": LLAMA3}, "edgepack"),
    ({"temperature": Temperature(0.1, 64), "qkv_bias": True, "output_bias": True}, "edgepack"),
    ({"temperature": Temperature(0.1, 64), "pattern": (LOCAL,)}, "edgepack"),
    ({"pattern": (Positions(PLAIN), Positions(GLOBAL))}, "edgepack"),
    ({"norm": "layer", "tied": False}, "stablelm"),
    ({"norm": "layer", "tied": False, "qkv_bias": True, "rope": Rope(10000.0, 4)}, "stablelm"),
    ({"norm": "layer"}, "edgepack"),
    ({"norm": "layer", "tied": False, "qk_norm": "head"}, "edgepack"),
    ({"norm": "layer", "tied": False, "mlp_bias": True}, "edgepack"),
    ({"norm": "layer", "tied": False, "pattern": (LOCAL,)}, "edgepack"),
    ({"norm": "layer", "tied": False, "head_dim": 32}, "edgepack"),
    ({"norm": "layer", "tied": False, "rope": SCALED}, "edgepack"),
    ({"norm": "layer", "norms": "both"}, "edgepack"),
    (LFM2, "lfm2"),
    (QWEN3_5, "edgepack"),
    ({**LFM2, "convolution": Convolution(length=3, bias=True)}, "lfm2"),
    ({**LFM2, "tied": False}, "edgepack"),
    ({**LFM2, "qk_norm": None}, "edgepack"),
    ({**LFM2, "rope": LLAMA3}, "edgepack"),
    ({**LFM2, "head_dim": 32}, "edgepack"),
    ({**GEMMA2, "pattern": (LOCAL, Positions(PLAIN))}, "gemma2"),
    ({**GEMMA2, "attention_scale": 0.3, "head_dim": 32, "rope": Rope(10000.0, 32)}, "gemma2"),
    ({**GEMMA2, "logits_softcap": None}, "edgepack"),
    ({**GEMMA2, "tied": False}, "edgepack"),
    ({**GEMMA2, "embedding_scale": 7.5}, "edgepack"),
    ({**GEMMA2, "rope": SCALED}, "edgepack"),
    ({**GEMMA3, "pattern": (LOCAL, Positions(GLOBAL))}, "gemma3_text"),
    ({**GEMMA3, "pattern": (Positions(PLAIN), Positions(GLOBAL)), "tied": False}, "gemma3_text"),
    ({**GEMMA3, "pattern": (LOCAL, Positions(SCALED))}, "gemma3_text"),
    ({**GEMMA3, "pattern": (Positions(SCALED, 24), Positions(SCALED))}, "edgepack"),
    ({**GEMMA3, "pattern": (Positions(GLOBAL), LOCAL)}, "edgepack"),
    ({**GEMMA3, "pattern": (LOCAL,)}, "edgepack"),
    ({**GEMMA3, "qkv_bias": True, "output_bias": True}, "edgepack"),
]


@pytest.mark.parametrize(("fields", "kind"), CHOICES)
def test_model_file_is_the_first_that_expresses_the_decoder(fields: dict[str, Any], kind: str) -> None:
    assert choose(describe(**fields)).name == kind


@pytest.mark.parametrize("dim", range(2, 97, 2))
def test_partial_rotary_factor_gives_the_dimension_again(dim: int, tmp_path: Path) -> None:
    decoder = describe(head_dim=98, hidden_size=98, n_heads=1, n_kv_heads=1, rope=Rope(10000.0, dim), n_layers=1)
    write(RandomWeights(decoder), tmp_path / "v", "f32")
    assert int(98 * config_of(tmp_path / "v")["partial_rotary_factor"]) == dim


def test_packed_context_of_phi_keeps_the_magnitude_of_the_trained_one(tmp_path: Path) -> None:
    """mlx-lm makes the magnitude of the longest context: 131072 positions, from 4096, are sqrt(1 + 5/12)."""
    scaling = LongRopeScaling((1.0,) * 8, (1 + 5 / 12) ** 0.5, 4096)
    write(RandomWeights(describe(rope=Rope(10000.0, 16, scaling), context=2048)), tmp_path / "v", "f32")
    assert config_of(tmp_path / "v")["max_position_embeddings"] == 131072


def test_local_layers_without_a_window_get_one_as_long_as_the_context(tmp_path: Path) -> None:
    """So a Gemma 3 is packed for a context that its window covers; mlx-lm tells its ropes apart by the layer's kind."""
    from mlx_lm.utils import load_model

    decoder = describe(**GEMMA3, pattern=(Positions(PLAIN), Positions(GLOBAL)), context=100)
    weights = RandomWeights(decoder, seed=8)
    write(weights, tmp_path / "v", "f32")
    config = config_of(tmp_path / "v")
    assert (config["sliding_window"], config["sliding_window_pattern"]) == (100, 2)
    ids = list(range(100))
    with mx.stream(mx.cpu):
        found = np.array(load_model(tmp_path / "v")[0](mx.array([ids]))[0])
    expected = reference.logits(weights, ids)
    assert np.square(found - expected).sum() <= 1e-10 * np.square(expected).sum()


# Reading back ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["f32", "bf16", "8bit", "4bit"])
def test_every_family_reads_back_within_its_bound(source: Path, scheme: str, tmp_path: Path) -> None:
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        write(weights, tmp_path / scheme, scheme)
        proven = tensors.prove(MlxTarget(), tmp_path / scheme, weights, lambda elements: None)
    assert missed(proven.findings) == []
    if scheme == "f32":
        assert proven.findings[0].gate.value == 0


@pytest.mark.parametrize("part", ["attention.k", "attention.v", "mlp.up", "attention.q"])
def test_swapped_parts_of_a_fused_matrix_are_found(part: str, tmp_path: Path) -> None:
    decoder = describe(rope=LONG, n_kv_heads=4)
    weights = RandomWeights(decoder)
    write(weights, tmp_path / "v", "8bit")
    other = {"attention.q": "attention.k", "mlp.up": "mlp.gate"}.get(part, "attention.q")
    weights.tensors[f"layers.1.{part}"] = weights.tensors[f"layers.1.{other}"]
    found = missed(tensors.prove(MlxTarget(), tmp_path / "v", weights, lambda elements: None).findings)
    assert re.match(rf"tensors\.row_error is 1\.\d+ in row \d+ of layers\.1\.{part}, the limit", found[0])


def test_gain_that_is_stored_without_its_one_is_the_same_gain() -> None:
    """For all bfloat16 numbers w, and a million of float32: what 1 + w forgets of w, the gain does not have either."""
    every = (np.arange(1 << 16, dtype=np.uint32) << 16).view(np.float32)
    gains = 1 + every[np.isfinite(every)]
    rounded = np.array(mx.array(gains - 1).astype(mx.bfloat16).astype(mx.float32))
    assert np.array_equal(1 + rounded, gains)
    rng = np.random.default_rng(0)
    gains = 1 + (rng.standard_normal(1 << 20) * 2.0 ** rng.integers(-30, 8, 1 << 20)).astype(np.float32)
    assert np.array_equal(1 + (gains - 1), gains)


def test_levels_of_a_wide_decoder_fit_the_scales_that_are_stored(tmp_path: Path) -> None:
    """8 bits with bfloat16 scales: closer to the weights than the levels of mlx, which are chosen before it rounds."""
    weights = RandomWeights(describe(wide=True, hidden_size=128), dtype="bf16")
    rows = weights.tensors["embedding"]
    packed, scales, biases = mx.quantize(mx.array(rows), group_size=64, bits=8, stream=mx.cpu)
    rounded = [array.astype(mx.bfloat16).astype(mx.float32) for array in (scales, biases)]
    theirs = np.array(mx.dequantize(packed, *rounded, group_size=64, bits=8, stream=mx.cpu))
    exact = np.array(mx.dequantize(packed, scales, biases, group_size=64, bits=8, stream=mx.cpu))
    write(weights, tmp_path / "v", "8bit")
    ours = MlxTarget().read(tmp_path / "v", weights.decoder).rows("embedding", 0, len(rows))
    errors = [float(np.linalg.norm(found - rows)) for found in (exact, ours, theirs)]
    assert errors[1] < 1.03 * errors[0] < 1.1 * errors[0] < errors[2]
