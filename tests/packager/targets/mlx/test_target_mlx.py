"""The MLX target: its bytes against mlx's own quantiser and converter, its files against mlx-lm, its faults by name."""

from __future__ import annotations

import hashlib
import json
import math
import resource
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import msgspec
import numpy as np
import pytest
from decoders import describe
from models import LINEAR, LLAMA3, make_llama
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Llama3Scaling, Rope
from edgepack.errors import BuildError, UsageError
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks, row_blocks
from edgepack_packager.targets import Model, Written, find
from edgepack_packager.targets.mlx import MlxTarget
from edgepack_packager.targets.mlx.forms import FORMS, Affine
from edgepack_packager.targets.mlx.layout import lay_out
from edgepack_packager.targets.mlx.quantize import Float, dequantize, quantize, round_to
from edgepack_packager.text import read_text
from edgepack_packager.text.side import Text

KINDS = ("f32", "f16", "bf16")
MLX_TYPES = {"f32": mx.float32, "f16": mx.float16, "bf16": mx.bfloat16}


class InMemory:
    """``Weights`` of arrays."""

    def __init__(self, decoder: Decoder, dtype: str, tensors: Mapping[str, Float32]) -> None:
        self.decoder, self.dtype, self.tensors = decoder, dtype, tensors

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self.tensors[name][start:stop]


def decoder(**fields: Any) -> Decoder:
    """A decoder of one layer with 128 columns everywhere but in the input of ``mlp.down``."""
    shape = {"n_layers": 1, "hidden_size": 128, "n_heads": 4, "n_kv_heads": 2, "head_dim": 32, "n_vocab": 40}
    rope = Rope(theta=10000.0, dim=32)
    rest = {"intermediate_size": 192, "context": 64, "norm_eps": 1e-5, "rope": rope, "tied": True}
    return describe(**{"family": "llama", "architecture": "LlamaForCausalLM", **shape, **rest, **fields})


def random_weights(described: Decoder, dtype: str = "bf16", seed: int = 0) -> InMemory:
    """Normal numbers that are exactly of the type, with a deviation of 0.05."""
    rng = np.random.default_rng(seed)
    draws = {name: rng.normal(size=shape, scale=0.05).astype(np.float32) for name, shape in described.tensors()}
    return InMemory(described, dtype, {name: as_type(array, dtype) for name, array in draws.items()})


def as_type(array: Float32, dtype: str) -> Float32:
    return np.array(mx.array(array).astype(MLX_TYPES[dtype]).astype(mx.float32))


def write(weights: Weights, folder: Path, scheme: str, target: MlxTarget | None = None, **fields: Any) -> Written:
    folder.mkdir(parents=True)
    model = Model("tiny", weights.decoder, weights.dtype, **fields)
    writer = (target or MlxTarget()).open(folder, model, scheme)
    try:
        for name, start, stop in blocks(weights.decoder):
            writer.write(name, start, weights.rows(name, start, stop))
        return writer.finish()
    finally:
        writer.abort()


def load(folder: Path) -> dict[str, mx.array]:
    return {k: v for file in sorted(folder.glob("*.safetensors")) for k, v in mx.load(str(file)).items()}


def same(left: mx.array, right: mx.array) -> bool:
    """Equal in type, shape and every bit."""
    if left.dtype != right.dtype or left.shape != right.shape:
        return False
    bits = {2: mx.uint16, 4: mx.uint32}[left.dtype.size]
    return bool(mx.array_equal(left.view(bits), right.view(bits)).item())


GROUPS = {
    "normal": lambda x: x,
    "positive": np.abs,
    "negative": lambda x: -np.abs(x),
    "offset": lambda x: x + 7,
    "few levels": lambda x: np.round(2 * x) / 2,
    "constant rows": lambda x: np.repeat(x[:, :1], x.shape[1], axis=1),
    "zeros": lambda x: np.where(np.arange(len(x))[:, None] % 3, x, 0),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", GROUPS)
def test_quantiser_is_mlx_own(form: Affine, kind: str, shape: str) -> None:
    """Affine too: levels of 3, 5 and 6 bits lie across the borders of its words."""
    bits, group = form.bits, form.group
    normal = np.random.default_rng(bits).normal(size=(32, 256))
    sizes = (1e-20, 1e-7, 1e-4, 0.02, 1.0, 3000.0)
    rows = np.concatenate([as_type((GROUPS[shape](normal) * size).astype(np.float32), kind) for size in sizes])
    packed, scales, biases = quantize(rows, bits, group=group)
    with mx.stream(mx.cpu):
        theirs = mx.quantize(mx.array(rows).astype(MLX_TYPES[kind]), group_size=group, bits=bits)
        values = mx.dequantize(
            mx.array(packed.view(np.uint32)), mx.array(scales), mx.array(biases), group_size=group, bits=bits
        )
        ours = (mx.array(packed.view(np.uint32)), *(mx.array(x).astype(MLX_TYPES[kind]) for x in (scales, biases)))
        assert all(map(same, ours, theirs))
    assert np.array_equal(np.array(values), dequantize(packed, scales, biases, bits))


def square_error(rows: Float32, bits: int, kind: Float, *, search: bool) -> float:
    """The squared error of what is stored, scales and biases rounded to ``kind``."""
    packed, scales, biases = quantize(rows, bits, kind, search=search)
    found = dequantize(packed, as_type(scales, kind), as_type(biases, kind), bits)
    return float(np.square(found.astype(np.float64) - rows).sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", GROUPS)
@pytest.mark.parametrize("size", [1e-20, 1e-7, 1e-4, 0.02, 1.0, 3000.0])
def test_a_search_leaves_less_than_the_plain_levels(kind: Float, shape: str, size: float) -> None:
    rows = as_type((GROUPS[shape](np.random.default_rng(5).normal(size=(32, 256))) * size).astype(np.float32), kind)
    plain, searched = (square_error(rows, 4, kind, search=search) for search in (False, True))
    assert searched <= plain * (1 + 1e-5)
    if shape == "normal" and size >= 0.02:
        assert searched < 0.9 * plain


def test_a_search_gives_the_same_bytes_on_every_host() -> None:
    rows = np.random.default_rng(3).integers(-(2**20), 2**20, (64, 256)).astype(np.float32) / np.float32(3)
    found = [hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in quantize(rows, 4, "bf16", search=True)]
    assert found == ["a429a4bb5d903aa0", "5a9d1399e097a270", "f1065348fa756d87"]


@pytest.mark.parametrize("search", [False, True])
def test_quantiser_does_not_depend_on_blocks(search: bool) -> None:
    rows = np.random.default_rng(3).normal(size=(700, 2048)).astype(np.float32)
    whole = quantize(rows, 4, search=search)
    parts = [quantize(rows[start:stop], 4, search=search) for start, stop in ((0, 1), (1, 300), (300, 700))]
    assert all(
        np.array_equal(one, np.concatenate(some)) for one, some in zip(whole, zip(*parts, strict=True), strict=True)
    )


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_rounding_is_to_nearest_even(kind: str) -> None:
    bits = np.random.default_rng(0).integers(0, 1 << 32, 200_000, dtype=np.uint32)
    values = bits.view(np.float32)
    values = np.concatenate(
        [values[np.isfinite(values)], np.float32([0.0, -0.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11])]
    )
    rounded, fits = round_to(values, kind)  # type: ignore[arg-type]
    expected = mx.array(values).astype(MLX_TYPES[kind]).view(mx.uint16)
    assert np.array_equal(rounded.view(np.uint16), np.array(expected))
    assert not fits
    assert round_to(np.float32([1.5, -0.25]), kind)[1]  # type: ignore[arg-type]


# Against mlx-lm --------------------------------------------------------------------------------------------------


def convert(source: Path, out: Path, **options: Any) -> dict[str, mx.array]:
    from mlx_lm import convert as mlx_lm_convert

    mlx_lm_convert(str(source), str(out), **options)
    return load(out)


def pack(source: Path, out: Path, scheme: str) -> tuple[Weights, Written]:
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        text = read_text(source, checkpoint.config, weights.decoder)
        return weights, write(weights, out, scheme, config=checkpoint.config, text=text)


def assert_same_tensors(ours: Path, theirs: dict[str, mx.array]) -> None:
    found = load(ours)
    assert found.keys() == theirs.keys()
    assert [name for name in found if not same(found[name], theirs[name])] == []


@pytest.fixture(scope="module", params=[("bf16", True), ("f16", False), ("f32", True)], ids=lambda p: p[0])
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    dtype, tied = request.param
    folder = tmp_path_factory.mktemp(dtype) / "model"
    return dtype, make_llama(folder, dtype=dtype, tied=tied, hidden=256, intermediate=352, rope=LLAMA3, mlp_bias=True)


@pytest.mark.parametrize("scheme", ["2bit_g32", "3bit", "4bit", "5bit", "6bit", "8bit"])
def test_quantised_folder_is_that_of_mlx_lm_convert(source: tuple[str, Path], scheme: str, tmp_path: Path) -> None:
    (dtype, folder), form = source, FORMS[scheme]
    theirs = convert(folder, tmp_path / "theirs", quantize=True, q_bits=form.bits, q_group_size=form.group)
    pack(folder, tmp_path / "ours", scheme)
    if (dtype, form.bits) != ("bf16", 8):
        assert_same_tensors(tmp_path / "ours", theirs)
        return
    # 8 bits of a bfloat16 source: the same levels, with scales, biases and norms in float16.
    found = load(tmp_path / "ours")
    assert found.keys() == theirs.keys()
    for name, array in found.items():
        if array.dtype == mx.uint32:
            assert same(array, theirs[name]), name
        elif name.endswith((".scales", ".biases")):
            assert array.dtype == mx.float16
            assert mx.allclose(array.astype(mx.float32), theirs[name].astype(mx.float32), rtol=2**-7, atol=2**-24), name
        else:
            assert same(array, theirs[name].astype(mx.float16)), name


@pytest.mark.parametrize("scheme", ["f32", "f16", "bf16"])
def test_float_folder_is_that_of_mlx_lm_convert(source: tuple[str, Path], scheme: str, tmp_path: Path) -> None:
    names = {"f32": "float32", "f16": "float16", "bf16": "bfloat16"}
    theirs = convert(source[1], tmp_path / "theirs", dtype=names[scheme])
    pack(source[1], tmp_path / "ours", scheme)
    assert_same_tensors(tmp_path / "ours", theirs)


@pytest.mark.shared
@pytest.mark.parametrize("bits", [4, 8])
def test_trained_model_is_that_of_mlx_lm_convert(shared: Path, bits: int, tmp_path: Path) -> None:
    folder = shared / "models" / "stories-260K"
    theirs = convert(folder, tmp_path / "theirs", quantize=True, q_bits=bits)
    weights, written = pack(folder, tmp_path / "ours", f"{bits}bit")
    assert_same_tensors(tmp_path / "ours", theirs)
    assert [fallback.tensor for fallback in written.fallbacks] == [
        f"layers.{layer}.mlp.down" for layer in range(weights.decoder.n_layers)
    ]
    assert {fallback.scheme for fallback in written.fallbacks} == {"f32"}
    assert "172 columns" in written.fallbacks[0].reason


def test_eight_bits_of_bfloat16_have_half_precision_scales(tmp_path: Path) -> None:
    weights = random_weights(decoder())
    write(weights, tmp_path / "v", "8bit")
    found = load(tmp_path / "v")
    _, scales, biases = mx.quantize(mx.array(weights.tensors["embedding"]), group_size=64, bits=8, stream=mx.cpu)
    assert same(found["model.embed_tokens.scales"], scales.astype(mx.float16))
    assert same(found["model.embed_tokens.biases"], biases.astype(mx.float16))


# Files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", MlxTarget.schemes)
@pytest.mark.parametrize("dtype", KINDS)
def test_layout_tells_every_size_beforehand(scheme: str, dtype: str, tmp_path: Path) -> None:
    described = decoder(tied=False, qkv_bias=True, output_bias=True, mlp_bias=True)
    layout = lay_out(described, scheme, dtype)
    written = write(random_weights(described, dtype), tmp_path / "v", scheme)
    assert {file.name: file.stat().st_size for file in (tmp_path / "v").glob("*.safetensors")} == dict(layout.sizes)
    assert written.tensor_bytes == written.weights_bytes == layout.tensor_bytes
    assert written.tensor_bytes == sum(array.nbytes for array in load(tmp_path / "v").values())
    assert all(slot.offset % (4 if slot.dtype in ("F32", "U32") else 2) == 0 for slot in layout.slots.values())


def test_large_model_is_sharded_and_read_back(tmp_path: Path) -> None:
    weights = random_weights(decoder(tied=False))
    write(weights, tmp_path / "one", "4bit")
    target = MlxTarget(shard_bytes=20_000)
    written = write(weights, tmp_path / "many", "4bit", target)
    names = sorted(file.name for file in (tmp_path / "many").glob("*.safetensors"))
    assert names[0] == f"model-00001-of-{len(names):05}.safetensors"
    assert len(names) > 2
    assert_same_tensors(tmp_path / "many", load(tmp_path / "one"))
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {
        "total_size": written.tensor_bytes,
        "total_parameters": weights.decoder.n_parameters,
    }
    for name, file in index["weight_map"].items():
        assert name in mx.load(str(tmp_path / "many" / file))
    assert_reads_back(weights, tmp_path / "many")


def test_rows_that_groups_of_128_do_not_fill_take_narrower_ones_and_say_so(tmp_path: Path) -> None:
    """mlx-lm leaves such a matrix as it is, and so does "4bit", its own scheme."""
    weights = random_weights(decoder(intermediate_size=192, tied=False))
    written = write(weights, tmp_path / "v", "4bit_g128")
    reader = MlxTarget().read(tmp_path / "v", weights.decoder)
    groups = {name: reader.form(name).group for name, shape in weights.decoder.tensors() if len(shape) == 2}
    reader.close()
    assert {name for name, group in groups.items() if group != 128} == {"layers.0.mlp.down"}
    (told,) = written.fallbacks
    assert (told.tensor, told.scheme) == ("layers.0.mlp.down", "4bit")
    assert told.reason == "192 columns are not a multiple of the group of 128"
    assert_reads_back(weights, tmp_path / "v")
    narrow = lay_out(decoder(intermediate_size=96), "5bit_g128", "bf16").fallbacks
    assert [(each.tensor, each.scheme) for each in narrow] == [("layers.0.mlp.down", "5bit_g32")]
    whole = lay_out(decoder(intermediate_size=96), "5bit", "bf16").fallbacks
    assert [(each.tensor, each.scheme) for each in whole] == [("layers.0.mlp.down", "bf16")]


def test_same_input_gives_same_bytes(tmp_path: Path) -> None:
    weights = random_weights(decoder())
    write(weights, tmp_path / "a", "4bit")
    write(weights, tmp_path / "b", "4bit")
    names = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert names == ["config.json", "model.safetensors"]
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)


def test_config_has_both_rope_spellings_and_nothing_foreign(tmp_path: Path) -> None:
    config = {"_name_or_path": "/home/me", "auto_map": {"AutoModel": "x.py"}, "model_file": "x.py", "use_cache": True}
    scaling = Llama3Scaling(8.0, 1.0, 4.0, 64)
    described = decoder(rope=Rope(theta=500000.0, dim=32, scaling=scaling))
    write(random_weights(described), tmp_path / "v", "4bit", config={**config, "hidden_size": 7})
    written = json.loads((tmp_path / "v" / "config.json").read_text())
    assert written["rope_theta"] == 500000.0
    assert written["rope_scaling"]["rope_type"] == written["rope_scaling"]["type"] == "llama3"
    assert written["rope_parameters"] == {"rope_theta": 500000.0, **written["rope_scaling"]}
    assert written["rope_parameters"]["original_max_position_embeddings"] == 64
    assert written["quantization"] == written["quantization_config"] == {"group_size": 64, "bits": 4, "mode": "affine"}
    assert written["torch_dtype"] == written["dtype"] == "bfloat16"
    assert (written["hidden_size"], written["head_dim"], written["use_cache"]) == (128, 32, True)
    assert not {"_name_or_path", "auto_map", "model_file"} & written.keys()


def test_config_of_a_slice_describes_the_decoder(tmp_path: Path) -> None:
    described = decoder(tied=False)
    write(random_weights(described), tmp_path / "v", "f32")
    written = json.loads((tmp_path / "v" / "config.json").read_text())
    assert families.describe(written) == described
    assert written["rope_scaling"] is None
    assert "quantization" not in written


def test_all_stop_ids_reach_mlx_lm(tmp_path: Path) -> None:
    folder = make_llama(tmp_path / "source")
    with open_checkpoint(folder) as checkpoint:
        weights = families.open_model(checkpoint)
        text = read_text(folder, checkpoint.config, weights.decoder)
        assert text is not None
        write(weights, tmp_path / "same", "f32", text=text)
        write(weights, tmp_path / "more", "f32", text=replace(text, stops=(*text.stops, 9)))
    assert not (tmp_path / "same" / "tokenizer.json").exists()
    for name, data in text.files.items():
        assert name == "tokenizer.json" or (tmp_path / "same" / name).read_bytes() == data
    for file in ("config.json", "generation_config.json"):
        assert json.loads((tmp_path / "more" / file).read_text())["eos_token_id"] == [*text.stops, 9]


def test_only_the_tokenizer_files_are_carried(tmp_path: Path) -> None:
    files = {"tokenizer.json": b"{}", "tokenizer_config.json": b"{}", "evil.py": b"x"}
    text = Text(files, {}, None, False, (), None)
    write(random_weights(decoder()), tmp_path / "v", "f32", text=text)
    assert sorted(file.name for file in (tmp_path / "v").iterdir()) == [
        "config.json",
        "model.safetensors",
        "tokenizer_config.json",
    ]


def test_a_template_for_tools_lies_where_other_tools_look_for_it(tmp_path: Path) -> None:
    name = "additional_chat_templates/tool_use.jinja"
    files = {"tokenizer.json": b"{}", "chat_template.jinja": b"A", name: b"B"}
    text = Text(files, {}, None, False, (), "A", tool_use="B")
    write(random_weights(decoder()), tmp_path / "v", "f32", text=text)
    assert (tmp_path / "v" / name).read_bytes() == b"B"


# Reading back ----------------------------------------------------------------------------------------------------


def assert_reads_back(weights: Weights, folder: Path) -> None:
    reader = MlxTarget().read(folder, weights.decoder)
    for name, shape in weights.decoder.tensors():
        parts = [reader.rows(name, start, stop) for start, stop in row_blocks(shape, 1)]
        expected = weights.rows(name, 0, shape[0]).reshape(shape[0], -1)
        found = np.concatenate(parts).reshape(shape[0], -1)
        allowed = reader.bound(name) * np.linalg.norm(expected, axis=1)
        if reader.bound(name):
            allowed += 2.0**-17 * math.sqrt(expected.shape[1])
        assert (np.linalg.norm(found - expected, axis=1) <= allowed).all(), name
    reader.close()
    reader.close()


@pytest.mark.parametrize("scheme", MlxTarget.schemes)
@pytest.mark.parametrize("dtype", KINDS)
def test_rows_read_back_within_their_bound(scheme: str, dtype: str, tmp_path: Path) -> None:
    weights = random_weights(decoder(tied=False, mlp_bias=True, intermediate_size=172), dtype)
    write(weights, tmp_path / "v", scheme)
    assert_reads_back(weights, tmp_path / "v")


@pytest.mark.parametrize("scheme", ["4bit", "4bit_mixed", "8bit", "f16"])
def test_bound_holds_for_rows_made_to_break_it(scheme: str, tmp_path: Path) -> None:
    weights = random_weights(decoder(), "bf16")
    rng = np.random.default_rng(1)
    table = weights.tensors["embedding"].copy()
    levels = 2 ** (int(scheme[0]) - 1) if scheme[0] in "48" else 8
    table[0] = 0.5 / levels  # one edge, all others half-way between zero and a level
    table[0, ::64] = -1.0
    table[1] = rng.normal(size=128) * 1e-6
    table[2] = rng.normal(size=128) * 1e-20
    table[3] = np.where(np.arange(128) % 64, 3e-5, -3e-5)
    table[4] = 0.0
    table[5] = 1e-7 * rng.uniform(0.4, 1.6, 128)
    weights = InMemory(weights.decoder, "bf16", {**weights.tensors, "embedding": as_type(table, "bf16")})
    write(weights, tmp_path / "v", scheme)
    assert_reads_back(weights, tmp_path / "v")


def test_bound_is_below_what_a_swapped_row_would_cost(tmp_path: Path) -> None:
    weights = random_weights(decoder(), "bf16")
    for scheme, most in (("4bit", 0.52), ("8bit", 0.04), ("bf16", 0.004), ("f32", 0.0)):
        write(weights, tmp_path / scheme, scheme)
        reader = MlxTarget().read(tmp_path / scheme, weights.decoder)
        assert max(reader.bound(name) for name, _ in weights.decoder.tensors()) <= most
        reader.close()


def damage(folder: Path, fault: str) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    match fault:
        case "truncated":
            file.write_bytes(data[:-1])
        case "renamed":
            file.write_bytes(data.replace(b"mlp.down_proj.weight", b"mlp.dawn_proj.weight"))
        case "missing":
            file.unlink()
        case "config":
            (folder / "config.json").write_text('{"quantization": {"bits": 3, "group_size": 64}}')
        case "no json":
            (folder / "config.json").write_text("{")


@pytest.mark.parametrize("fault", ["truncated", "renamed", "missing", "config", "no json"])
def test_damage_is_a_build_error(fault: str, tmp_path: Path) -> None:
    weights = random_weights(decoder())
    write(weights, tmp_path / "v", "4bit")
    damage(tmp_path / "v", fault)
    with pytest.raises(BuildError, match=str(tmp_path)):
        MlxTarget().read(tmp_path / "v", weights.decoder).rows("layers.0.mlp.down", 0, 1)


# Faults ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("scheme", "value", "words"), [
    ("f16", 1e5, r"layers\.0\.mlp\.up holds 100000, which is beyond the range of f16\. Build bf16 or 4bit"),
    ("8bit", 1e5, r"layers\.0\.mlp\.up holds .* beyond the range of f16"),
    ("bf16", 3.4e38, r"layers\.0\.mlp\.up holds .* beyond the range of bf16"),
    ("f16", math.nan, r"layers\.0\.mlp\.up holds a NaN or an infinity"),
    ("bf16", math.inf, r"layers\.0\.mlp\.up holds a NaN or an infinity"),
    ("4bit", math.nan, r"layers\.0\.mlp\.up holds a NaN or an infinity"),
    ("4bit_mixed", math.nan, r"layers\.0\.mlp\.up holds a NaN or an infinity"),
    ("4bit_mixed", -math.inf, r"layers\.0\.mlp\.up holds a NaN or an infinity"),
])  # fmt: skip
def test_number_that_does_not_fit_is_named(scheme: str, value: float, words: str, tmp_path: Path) -> None:
    weights = random_weights(decoder())
    weights.tensors["layers.0.mlp.up"][3, 5] = value  # type: ignore[index]
    with pytest.raises(BuildError, match=words):
        write(weights, tmp_path / "v", scheme)


def test_float32_is_stored_as_it_is(tmp_path: Path) -> None:
    weights = random_weights(decoder(), "f32")
    weights.tensors["layers.0.mlp.up"][3, 5:8] = [math.nan, math.inf, -0.0]  # type: ignore[index]
    write(weights, tmp_path / "v", "f32")
    found = np.array(load(tmp_path / "v")["model.layers.0.mlp.up_proj.weight"])
    assert np.array_equal(found.view(np.uint32), weights.tensors["layers.0.mlp.up"].view(np.uint32))


def test_unfinished_and_disordered_writes_are_refused(tmp_path: Path) -> None:
    weights = random_weights(decoder())
    writer = MlxTarget().open(tmp_path, Model("tiny", weights.decoder, "bf16"), "4bit")
    rows = weights.tensors["embedding"]
    writer.write("embedding", 0, rows[:8])
    with pytest.raises(BuildError, match="embedding was written up to row 8 of 40"):
        writer.finish()
    for start, part in ((0, rows[:8]), (9, rows[9:]), (8, rows[:, :64]), (8, rows)):
        with pytest.raises(BuildError, match="out of order"):
            writer.write("embedding", start, part)
    writer.abort()
    writer.abort()


def test_full_disk_is_a_sentence(tmp_path: Path) -> None:
    weights = random_weights(decoder())
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(BuildError, match=r"cannot be written: File too large\. Free some space"):
            write(weights, tmp_path / "v", "f32")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_scheme_names() -> None:
    target = find("mlx")
    model = Model("tiny", decoder(), "bf16")
    asked = ("f32", "f16", "q8", "q4", "bf16", "4bit", "8bit")
    schemes = ["f32", "f16", "8bit", "4bit_mixed", "bf16", "4bit", "8bit"]
    assert [target.scheme(name, model) for name in asked] == schemes
    assert [target.scheme(name, model) for name in ("3bit_g64", "5bit_g32")] == ["3bit", "5bit_g32"]
    assert {target.scheme(name, model) for name in FORMS} == set(FORMS) < set(target.schemes)
    for name in ("q4_k_m", "7bit", "1bit", "4bit_g16", "4bit_g256", "4bit_g", "bit", "4bit_mixed_g64", "int4"):
        with pytest.raises(
            UsageError, match=rf"'{name}'\. Choose from: f32, f16, q8, q4, bf16, 4bit_mixed; or 2, 3, 4"
        ):
            target.scheme(name, model)


def test_wide_decoder_takes_no_f16() -> None:
    target, wide = MlxTarget(), decoder(wide=True)
    assert target.scheme("f16", Model("tiny", wide, "bf16")) == "bf16"
    for scheme in ("4bit", "8bit"):
        types = {slot.dtype for slot in lay_out(wide, scheme, "f16").slots.values()}
        assert types == {"U32", "BF16"}
        assert {slot.dtype for slot in lay_out(wide, scheme, "f32").slots.values()} == {"U32", "F32"}


def test_build_host_needs_no_mlx(tmp_path: Path) -> None:
    described = msgspec.json.encode(decoder()).decode()
    script = (
        "import sys, pathlib, msgspec, numpy\n"
        "from edgepack.bundle.decoder import Decoder\n"
        "from edgepack_packager.targets import Model, find\n"
        f"decoder = msgspec.json.decode({described!r}, type=Decoder)\n"
        f"writer = find('mlx').open(pathlib.Path({str(tmp_path)!r}), Model('tiny', decoder, 'bf16'), '4bit')\n"
        "for name, shape in decoder.tensors():\n"
        "    writer.write(name, 0, numpy.zeros(shape, numpy.float32))\n"
        "writer.finish()\n"
        "print([name for name in ('mlx', 'mlx_lm', 'torch', 'transformers') if name in sys.modules])\n"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


@pytest.mark.parametrize("rope", [None, LINEAR, LLAMA3], ids=["default", "linear", "llama3"])
@pytest.mark.parametrize("spelling", ["v4", "v5"])
def test_mlx_lm_reads_the_rope_of_either_spelling(
    rope: Mapping[str, object] | None, spelling: Any, tmp_path: Path
) -> None:
    """mlx-lm itself ignores ``rope_parameters``: the written config must give it what the source meant."""
    from mlx_lm.utils import load_model

    pack(make_llama(tmp_path / "v4", rope=rope, theta=500000.0), tmp_path / "expected", "f32")
    pack(make_llama(tmp_path / "in", rope=rope, theta=500000.0, spelling=spelling), tmp_path / "out", "f32")
    ids = mx.array([list(range(3, 103))])
    found: list[NDArray[np.float32]] = [np.array(load_model(tmp_path / name)[0](ids)) for name in ("expected", "out")]
    assert np.array_equal(found[0], found[1])
    args = load_model(tmp_path / "out", lazy=True)[0].args
    assert args.rope_theta == 500000.0
    assert (args.rope_scaling or {}).get("factor") == (rope or {}).get("factor")
