"""The ONNX target: its bytes against onnxruntime's own quantiser, its files against onnx, its faults by name."""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
from decoders import Positions, changed, describe
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder, arranged
from edgepack.bundle.rope import Llama3Scaling, LongRopeScaling, ProportionalScaling, Rope
from edgepack.errors import BuildError, UnsupportedModelError, UsageError
from edgepack_packager.checkpoint.weights import Float32, blocks
from edgepack_packager.targets import Model, Written, find
from edgepack_packager.targets.onnx import OnnxTarget
from edgepack_packager.targets.onnx.blocks import bound, dequantize, pack_zeros, quantize, unpack_zeros
from edgepack_packager.targets.onnx.forms import FORMS, Blocks, filling
from edgepack_packager.targets.onnx.layout import ALIGNMENT, SCHEMES, layout
from edgepack_packager.targets.onnx.rope import cosine_and_sine, tables
from edgepack_packager.text.side import Text

# Those whose bytes are onnxruntime's own.
QUANTIZED = {name: form for name, form in FORMS.items() if not form.searched}
EVERY = [Blocks(bits, size) for bits in (2, 4, 8) for size in (32, 64, 128)]
ASYMMETRIC = [Blocks(4, size, asymmetric=True) for size in (32, 64, 128)]
COLUMNS = (20, 32, 33, 40, 172, 256)


def decoder(**fields: Any) -> Decoder:
    """A decoder of two layers; the input of ``mlp.down`` does not fill its last block."""
    shape = {"n_layers": 2, "hidden_size": 64, "n_heads": 4, "n_kv_heads": 2, "head_dim": 16, "n_vocab": 50}
    rope = Rope(theta=10000.0, dim=16)
    rest = {"intermediate_size": 172, "context": 96, "norm_eps": 1e-5, "rope": rope, "tied": True}
    return describe(**{"family": "llama", "architecture": "LlamaForCausalLM", **shape, **rest, **fields})


def elaborate(**fields: Any) -> Decoder:
    """A decoder with every feature at once: two ropes and a layer without one, windows, norms, softcaps and scales."""
    local = Positions(Rope(theta=10000.0, dim=12), window=24)
    far = Positions(Rope(theta=1e6, dim=16, scaling=LongRopeScaling(tuple(range(1, 9)), 1.19, 64)))
    rest = {"n_layers": 4, "pattern": (local, far, Positions(None)), "qk_norm": "head", "norms": "both"}
    caps = {"attention_softcap": 50.0, "logits_softcap": 30.0, "attention_scale": 0.2, "embedding_scale": 8.0}
    return decoder(**{"rope": None, "activation": "gelu_tanh", "qkv_bias": True, **rest, **caps, **fields})


def shared(**fields: Any) -> Decoder:
    """A decoder whose last two layers read the keys of the first two, with inputs for each, and layers of two sizes."""
    alike = decoder(**{"n_layers": 4, "qk_norm": "head", "norms": "both", **fields})
    layer, change = alike.layer(0), msgspec.structs.replace
    near = change(alike.attentions[0], window=24)
    far = change(near, head_dim=32, rope=Rope(theta=1e6, dim=32, scaling=ProportionalScaling(4)), window=None)
    own = [change(each, v_norm=True) for each in (near, far)]
    mixers = [*own, change(near, kv_layer=0), change(far, kv_layer=1)]
    mlps = [change(layer.mlp, size=size) for size in (172, 172, 344, 344)]
    layers = [
        change(layer, mixer=mixer, mlp=mlp, inputs=9, scaled=True) for mixer, mlp in zip(mixers, mlps, strict=True)
    ]
    return change(alike, **arranged(layers))


DECODERS = {"llama": decoder, "elaborate": elaborate, "shared": shared}


def random_tensors(described: Decoder, seed: int = 0) -> dict[str, Float32]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in described.tensors()}


def pack(
    folder: Path, described: Decoder, tensors: Mapping[str, Float32], scheme: str, text: Text | None = None
) -> Written:
    folder.mkdir(exist_ok=True)
    writer = find("onnx").open(folder, Model("tiny", described, "f32", text=text), scheme)
    for name, start, stop in blocks(described):
        writer.write(name, start, tensors[name][start:stop])
    return writer.finish()


def digests(folder: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir()}


def row_errors(found: Float32, exact: Float32) -> NDArray[np.float64]:
    """Relative L2 error of each row; of each number of a vector."""
    found, exact = found.reshape(len(found), -1), exact.reshape(len(exact), -1)
    return np.linalg.norm(found.astype(np.float64) - exact, axis=1) / np.linalg.norm(exact.astype(np.float64), axis=1)


# The quantiser -------------------------------------------------------------------------------------------------------


def engines_own(rows: Float32, form: Blocks) -> tuple[NDArray[np.uint8], Float32, NDArray[np.uint8]]:
    """What onnxruntime's quantiser makes of the rows, padded with zeros as its Python front end does."""
    from onnxruntime.capi import _pybind_state

    n, columns = rows.shape
    count = form.count(columns)
    padded = np.pad(rows, ((0, 0), (0, count * form.size - columns)))
    codes = np.zeros((n, count, form.size_bytes), np.uint8)
    scales = np.zeros(n * count, np.float32)
    zero_points = np.zeros((n, -(-count * form.bits // 8)), np.uint8)
    native = getattr(_pybind_state, f"quantize_matmul_{form.bits}bits")
    native(
        codes, np.ascontiguousarray(padded.T), scales, zero_points, form.size, n, count * form.size, not form.asymmetric
    )
    return codes, scales.reshape(n, count), zero_points


def normal(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return rng.standard_normal(shape, dtype=np.float32)


def as_bf16(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return (normal(rng, shape).view(np.uint32) & 0xFFFF0000).view(np.float32)


def whole_numbers(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Many blocks in which both signs reach the largest magnitude."""
    return rng.integers(-3, 4, shape).astype(np.float32)


def signed_zeros(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return np.where(rng.random(shape) < 0.5, np.float32(-0.0), np.float32(0.0))


def tiny_numbers(rng: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return normal(rng, shape) * np.float32(1e-30)


@pytest.mark.parametrize("draw", [normal, as_bf16, whole_numbers, signed_zeros, tiny_numbers])
@pytest.mark.parametrize("form", [*EVERY, *ASYMMETRIC])
def test_codes_and_scales_are_those_of_onnxruntime(form: Blocks, draw: Any) -> None:
    rng = np.random.default_rng(form.bits)
    for columns in COLUMNS:
        rows = draw(rng, (64, columns))
        codes, scales, zeros = quantize(rows, form)
        engine_codes, engine_scales, engine_zeros = engines_own(rows, form)
        assert np.array_equal(codes, engine_codes)
        assert np.array_equal(scales.view(np.uint32), engine_scales.view(np.uint32))
        assert not form.asymmetric or np.array_equal(pack_zeros(zeros, form.bits), engine_zeros)


@pytest.mark.parametrize(("bits", "columns"), [(2, 64), (2, 50), (4, 64), (4, 50), (8, 64), (8, 50)])
def test_every_code_stands_for_its_step(bits: int, columns: int) -> None:
    """More rows than are read at a time, the last block not full."""
    rng = np.random.default_rng(6)
    n = 5000
    codes = rng.integers(0, 256, (n, 2, 4 * bits), dtype=np.uint8)
    scales = rng.standard_normal((n, 2), dtype=np.float32)
    split = np.stack([codes >> shift & (1 << bits) - 1 for shift in range(0, 8, bits)], axis=-1)
    zeros = rng.integers(0, 1 << bits, (n, 2), np.uint8)
    expected = (split.reshape(n, 2, 32).astype(np.float32) - zeros[:, :, None]) * scales[:, :, None]
    assert np.array_equal(dequantize(codes, scales, zeros, columns, bits), expected.reshape(n, 64)[:, :columns])


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_numbers_below_every_scale_become_zeros(bits: int) -> None:
    rows = np.full((1, 32), 1e-42, np.float32)
    assert np.abs(dequantize(*quantize(rows, Blocks(bits)), 32, bits)).max() == 0


@pytest.mark.parametrize("form", [*EVERY, *ASYMMETRIC])
def test_the_bound_is_reached_by_the_worst_row_and_by_no_other(form: Blocks) -> None:
    rng = np.random.default_rng(1)
    worst = np.full((1, form.size), 0.5, np.float32)
    worst[0, 0] = -(2 ** (form.bits - 1))
    if form.asymmetric:
        worst[0, :2] = -7.5, 7.5
    reached = row_errors(dequantize(*quantize(worst, form), form.size, form.bits), worst)[0]
    assert 0.999 * bound(form) < reached <= bound(form)
    for columns in COLUMNS:
        rows = rng.standard_normal((200, columns), dtype=np.float32) ** 3
        assert row_errors(dequantize(*quantize(rows, form), columns, form.bits), rows).max() <= bound(form)


SEARCHED = [Blocks(4, size, searched=True) for size in (32, 64)]
SEARCHED_TOO = [FORMS["int2"], FORMS["int2_b128"], Blocks(4, 128, searched=True)]
SEARCHED_TOO += [replace(form, searched=True) for form in ASYMMETRIC]


def loudness(rows: Any, size: int) -> Any:
    """What an error counts where no text says it: the weight's square and its block's mean square."""
    squares = np.square(np.pad(rows.astype(np.float64), ((0, 0), (0, -rows.shape[1] % size))))
    mean = squares.reshape(len(rows), -1, size).mean(axis=2).repeat(size, axis=1)
    return (squares + mean)[:, : rows.shape[1]]


@pytest.mark.parametrize("form", [*SEARCHED, *SEARCHED_TOO])
@pytest.mark.parametrize("draw", [normal, as_bf16, whole_numbers, signed_zeros, tiny_numbers])
def test_a_searched_scale_leaves_less_than_the_plain_one(draw: Any, form: Blocks) -> None:
    rng = np.random.default_rng(form.size)
    for columns in COLUMNS:
        rows = draw(rng, (64, columns))
        plain = replace(form, searched=False)
        counts = loudness(rows, form.size)
        plain_error, error = (
            (counts * np.square(dequantize(*quantize(rows, each), columns, form.bits).astype(np.float64) - rows)).sum()
            for each in (plain, form)
        )
        assert error <= plain_error * (1 + 1e-6)
        if draw is normal and columns % form.size == 0:
            assert error < 0.94 * plain_error


@pytest.mark.parametrize("form", [*SEARCHED, *SEARCHED_TOO])
def test_a_searched_row_is_within_the_bound(form: Blocks) -> None:
    rows = np.random.default_rng(2).standard_normal((500, 256), dtype=np.float32) ** 3
    rows[0] = 0.5
    rows[0, :: form.size] = -(2 ** (form.bits - 1))
    assert row_errors(dequantize(*quantize(rows, form), 256, form.bits), rows).max() <= bound(form)


def test_a_search_gives_the_same_bytes_on_every_host() -> None:
    rows = np.random.default_rng(3).integers(-(2**20), 2**20, (64, 256)).astype(np.float32) / np.float32(3)
    found = [hashlib.sha256(part.tobytes()).hexdigest()[:16] for form in SEARCHED for part in quantize(rows, form)[:2]]
    assert found == ["02d9378983d7df91", "4d52ea166f029e65", "e4a2c9f40b43252f", "4e3aea1a5b7d7250"]
    asymmetric = quantize(rows, replace(ASYMMETRIC[1], searched=True))
    assert [hashlib.sha256(part.tobytes()).hexdigest()[:16] for part in asymmetric] == [
        "d18fcb77a4244995",
        "111f002ae6ad41bd",
        "55503bd933db977c",
    ]


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("form", [*SEARCHED, *SEARCHED_TOO, Blocks(4), Blocks(8, 64), ASYMMETRIC[0]])
def test_a_block_that_is_not_finite_has_no_finite_scale(form: Blocks, number: float) -> None:
    rows = np.ones((2, 128), np.float32)
    rows[1, 70] = number
    _, scales, _ = quantize(rows, form)
    assert np.argwhere(~np.isfinite(scales)).tolist() == [[1, 70 // form.size]]


# The layout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_sizes_are_told_before_anything_is_written(tmp_path: Path, scheme: str, tied: bool, kind: str) -> None:
    described = DECODERS[kind](tied=tied, qkv_bias=True)
    target, planned = OnnxTarget(), layout(described, scheme)
    measured = target.measure(described, "bf16", scheme)
    assert pack(tmp_path, described, random_tensors(described), scheme) == measured
    assert (tmp_path / "model.onnx.data").stat().st_size == measured.data_bytes
    assert (tmp_path / "model.onnx").stat().st_size == target.graph_bytes(described, scheme)
    assert (measured.tensor_bytes, measured.weights_bytes) == (planned.tensor_bytes, planned.resident_bytes)
    assert measured.loading_bytes == planned.loading_bytes
    assert {each.tensor for each in measured.fallbacks} == {
        name
        for name, shape in described.tensors()
        if len(shape) == 2 and scheme in FORMS and FORMS[scheme].size > 32 and shape[1] % FORMS[scheme].size
    }
    ends = 0
    for region in planned.regions:
        assert region.offset % ALIGNMENT == 0
        assert ends <= region.offset < ends + ALIGNMENT
        ends = region.offset + region.size
    assert ends == planned.size


def test_rows_that_blocks_do_not_fill_take_narrower_ones_and_say_so() -> None:
    described = decoder(hidden_size=320, intermediate_size=256)
    placed = layout(described, "int4_b128").tensors
    sizes = {name: stored.blocks.size for name, stored in placed.items() if stored.blocks}
    assert (sizes["layers.0.mlp.up"], sizes["layers.0.mlp.down"], sizes["layers.0.attention.o"]) == (64, 128, 64)
    told = {each.tensor: (each.scheme, each.reason) for each in layout(described, "int4_b128").written.fallbacks}
    assert told["layers.0.mlp.up"] == ("int4_b64", "320 columns are not a multiple of the block of 128")
    assert told.keys() == {name for name, size in sizes.items() if size != 128}
    assert not layout(decoder(), "int4").written.fallbacks


def llama_1b() -> Decoder:
    """The shape of Llama-3.2-1B."""
    scaling = Llama3Scaling(32.0, 1.0, 4.0, 8192)
    return decoder(
        n_layers=16,
        hidden_size=2048,
        n_heads=32,
        n_kv_heads=8,
        head_dim=64,
        intermediate_size=8192,
        n_vocab=128256,
        context=131072,
        rope=Rope(theta=500000.0, dim=64, scaling=scaling),
    )


def test_a_tied_embedding_counts_once_in_the_file_and_twice_in_memory() -> None:
    described = llama_1b()
    tied, untied = (layout(msgspec.structs.replace(described, tied=choice), "int4") for choice in (True, False))
    table = described.n_vocab * described.hidden_size
    vectors = (2 * described.n_layers + 1) * described.hidden_size
    # 4 bits, and 32 bits of scale for 32 numbers, make 5 bits; in memory 7 for a product's matrix.
    matrices = described.n_parameters - vectors
    assert tied.tensor_bytes == matrices * 5 // 8 + vectors * 4
    assert untied.tensor_bytes - tied.tensor_bytes == table * 5 // 8
    # The head keeps the scales of a tied embedding.
    assert (tied.loading_bytes, untied.loading_bytes) == (table * 4 // 8, table * 5 // 8)
    assert tied.resident_bytes == matrices * 7 // 8 + tied.loading_bytes + vectors * 4
    assert untied.resident_bytes == matrices * 7 // 8 + untied.loading_bytes + vectors * 4


def test_an_unpacked_matrix_is_kept_as_float32() -> None:
    described = llama_1b()
    table = described.n_vocab * described.hidden_size
    f32, f16 = layout(described, "f32"), layout(described, "f16")
    assert f32.resident_bytes == 4 * (described.n_parameters + table)
    # The largest matrix, here the head's, is float32 before it is packed.
    assert f16.resident_bytes == f32.resident_bytes


@pytest.mark.parametrize("tied", [True, False])
def test_a_table_of_inputs_is_only_gathered(tied: bool) -> None:
    """It stays mapped: of 785 M parameters in int8 the process took all but its 180 MiB."""
    described = msgspec.structs.replace(llama_1b(), tied=tied)
    fed = msgspec.structs.replace(
        described, kinds=(msgspec.structs.replace(described.kinds[0], inputs=256, scaled=True),)
    )
    table, vectors = 128256 * 16 * 256, 256 + 16 * (2048 + 1)
    before, after = layout(described, "int4"), layout(fed, "int4")
    products = fed.n_parameters - described.n_parameters - table - vectors
    assert after.tensor_bytes - before.tensor_bytes == (products + table) * 5 // 8 + vectors * 4
    assert after.resident_bytes - before.resident_bytes == products * 7 // 8 + vectors * 4


def test_a_cache_of_q8_has_scales_for_the_layers_that_keep_one() -> None:
    found = layout(shared(), "f32", "q8").caches
    assert {name: region.shape for name, region in found.items()} == {
        f"layers.{layer}.attention.{part}": (1, 2, 1, size) for layer, size in enumerate((16, 32)) for part in "kv"
    }


# The files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["elaborate", "shared"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_read_back_is_within_the_bound(tmp_path: Path, scheme: str, kind: str) -> None:
    described = DECODERS[kind](tied=False, mlp_bias=True, output_bias=True)
    tensors = random_tensors(described)
    pack(tmp_path, described, tensors, scheme)
    reader = find("onnx").read(tmp_path, described)
    for name, shape in described.tensors():
        found = np.concatenate([reader.rows(name, start, start + 1) for start in range(shape[0])])
        assert found.dtype == np.float32
        assert found.shape == shape
        errors = row_errors(found, tensors[name])
        assert errors.max() <= reader.bound(name)
        if len(shape) == 1 or scheme == "f32":
            assert np.array_equal(found, tensors[name])
        elif scheme == "f16":
            assert np.array_equal(found, tensors[name].astype(np.float16).astype(np.float32))
        else:
            assert errors.min() > 0
        if scheme in QUANTIZED and len(shape) == 2:
            form = filling(QUANTIZED[scheme], shape[1])
            codes, scales, packed = engines_own(tensors[name], form)
            zeros = np.full(scales.shape, 2 ** (form.bits - 1), np.uint8)
            if form.asymmetric:
                zeros = unpack_zeros(packed, scales.shape[1], form.bits)
            assert np.array_equal(found, dequantize(codes, scales, zeros, shape[1], form.bits))
    reader.close()


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_same_model_gives_the_same_bytes_in_blocks_of_any_size(tmp_path: Path, scheme: str, kind: str) -> None:
    described = DECODERS[kind]()
    tensors = random_tensors(described)
    pack(tmp_path / "whole", described, tensors, scheme)
    (tmp_path / "rows").mkdir()
    writer = find("onnx").open(tmp_path / "rows", Model("another name", described, "bf16"), scheme)
    for name, shape in described.tensors():
        for start in range(0, shape[0], 7):
            writer.write(name, start, tensors[name][start : start + 7])
    writer.finish()
    writer.abort()
    assert digests(tmp_path / "whole") == digests(tmp_path / "rows")


@pytest.mark.parametrize("kind", DECODERS)
@pytest.mark.parametrize("scheme", ["int4", "int8", "int4_mixed"])
def test_a_tied_head_names_the_bytes_of_the_embedding(tmp_path: Path, scheme: str, kind: str) -> None:
    described = DECODERS[kind](qkv_bias=False)
    pack(tmp_path, described, random_tensors(described), scheme)
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    places = {
        tensor.name: {entry.key: entry.value for entry in tensor.external_data}
        for tensor in model.graph.initializer
        if tensor.data_location == onnx.TensorProto.EXTERNAL
    }
    assert places["head.weight"] == places["embedding.weight"]
    assert {place["location"] for place in places.values()} == {"model.onnx.data"}
    assert model.producer_name == "edgepack"
    assert {name.removesuffix(".weight") for name in places if name.endswith("weight")} == {
        "head",
        *(name for name, _ in described.tensors()),
    }


def test_a_file_reference_elsewhere_is_not_read_back(tmp_path: Path) -> None:
    described = decoder()
    pack(tmp_path, described, random_tensors(described), "f32")
    model = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False)
    next(tensor for tensor in model.graph.initializer if tensor.external_data).external_data[0].value = "elsewhere.data"
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(BuildError, match=r"elsewhere\.data"):
        find("onnx").read(tmp_path, described)


def test_a_damaged_variant_is_named(tmp_path: Path) -> None:
    described = decoder()
    pack(tmp_path, described, random_tensors(described), "int4")
    target = find("onnx")
    with pytest.raises(BuildError, match=r"lacks the tensor layers\.0\.attention\.q\.bias"):
        target.read(tmp_path, changed(described, qkv_bias=True)).rows("layers.0.attention.q.bias", 0, 1)
    with pytest.raises(BuildError, match=r"The decoder has no tensor head"):
        target.read(tmp_path, described).rows("head", 0, 1)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:1000])
    with pytest.raises(BuildError, match=r"model\.onnx\.data ends before the rows 0 to 1 of norm"):
        target.read(tmp_path, described).rows("norm", 0, 1)
    data.unlink()
    with pytest.raises(BuildError, match="No such file"):
        target.read(tmp_path, described)
    (tmp_path / "model.onnx").write_bytes(b"not a model")
    with pytest.raises(BuildError, match="could not be read as an ONNX model"):
        target.read(tmp_path, described)


def test_another_shape_is_found_when_it_is_read_back(tmp_path: Path) -> None:
    described = decoder()
    pack(tmp_path / "f32", described, random_tensors(described), "f32")
    pack(tmp_path / "int4", described, random_tensors(described), "int4")
    wider = changed(described, intermediate_size=180)
    pack(tmp_path / "int4_mixed", described, random_tensors(described), "int4_mixed")
    for scheme in ("f32", "int4", "int4_mixed"):
        with pytest.raises(BuildError, match=r"layers\.0\.mlp\.gate has"):
            find("onnx").read(tmp_path / scheme, wider).rows("layers.0.mlp.gate", 0, 1)


# Rope ----------------------------------------------------------------------------------------------------------------


def test_the_rope_tables_are_the_rounded_cosines_and_sines() -> None:
    described = llama_1b()
    angles = np.arange(131072, dtype=np.float32)[::101, None] * described.ropes[0].frequencies()
    cosine, sine = cosine_and_sine(angles.astype(np.float64))
    assert np.abs(cosine - np.cos(angles.astype(np.float64))).max() < 1e-15
    assert np.abs(sine - np.sin(angles.astype(np.float64))).max() < 1e-15
    rows = dict.fromkeys(("cosine", "sine"), 0)
    for start, cosines, sines in tables(described.ropes[0], described.context):
        assert rows["cosine"] == start
        rows = {"cosine": start + len(cosines), "sine": start + len(sines)}
        if start == 0:
            assert np.array_equal(cosines[0], np.ones(32, np.float32))
            assert np.array_equal(sines[0], np.zeros(32, np.float32))
            position = len(cosines) - 1
            exact = np.cos((np.float32(position) * described.ropes[0].frequencies()).astype(np.float64))
            assert np.abs(cosines[-1] - exact).max() <= 2.0**-25
    assert rows == {"cosine": 131072, "sine": 131072}


def test_the_rope_tables_are_as_long_as_the_packed_context() -> None:
    """Whatever the model was trained for: two ropes, cosine and sine of float32, and of a head half as many angles."""
    packed, longer = (layout(elaborate(context=context, trained_context=32768), "int4") for context in (256, 512))
    assert {region.shape[0] for tables in packed.tables.values() for region in tables} == {256}
    assert longer.size - packed.size == 256 * 2 * 4 * (6 + 8)


def test_each_rope_has_its_own_tables_times_its_magnitude(tmp_path: Path) -> None:
    described = elaborate()
    pack(tmp_path, described, random_tensors(described), "int4")
    placed = layout(described, "int4").tables
    assert list(placed) == list(described.ropes)
    data = (tmp_path / "model.onnx.data").read_bytes()
    for rope, regions in placed.items():
        angles = (np.arange(96, dtype=np.float32)[:, None] * rope.frequencies()).astype(np.float64)
        for region, function in zip(regions, (np.cos, np.sin), strict=True):
            assert region.shape == (96, rope.dim // 2)
            table = np.frombuffer(data, "<f4", 96 * rope.dim // 2, region.offset).reshape(region.shape)
            assert np.abs(table - rope.magnitude * function(angles)).max() <= 2.0**-24


def test_a_model_without_positions_has_no_tables(tmp_path: Path) -> None:
    described = decoder(rope=None, pattern=(Positions(None),))
    written = pack(tmp_path, described, random_tensors(described), "f32")
    assert written.data_bytes == 4 * described.n_parameters
    assert layout(described, "f32").tables == {}


# Schemes and bad input -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "scheme"),
    [
        ("f32", "f32"),
        ("fp32", "f32"),
        ("f16", "f16"),
        ("q8", "int8"),
        ("q4", "int4_mixed"),
        ("int8", "int8"),
        ("int4", "int4"),
        ("int4_mixed", "int4_mixed"),
        ("int2", "int2"),
        ("int4_b32", "int4"),
        ("int4_b64", "int4_b64"),
        ("int8_b128", "int8_b128"),
    ],
)
def test_a_quantization_maps_to_its_scheme(asked: str, scheme: str) -> None:
    assert find("onnx").scheme(asked, Model("tiny", decoder(), "f32")) == scheme


@pytest.mark.parametrize("kind", ["elaborate", "shared"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_feature_can_be_expressed_in_every_scheme(scheme: str, kind: str) -> None:
    assert find("onnx").scheme(scheme, Model("tiny", DECODERS[kind](wide=True), "bf16")) == scheme


def test_an_engine_that_attends_to_the_keys_of_another_layer_is_asked_for() -> None:
    assert [OnnxTarget().floor(each()) for each in (decoder, elaborate, shared)] == ["1.27", "1.27", "1.32"]


def test_an_unknown_quantization_is_a_usage_error() -> None:
    for name in ("q4_k_m", "int3", "int4_b16", "int4_b256", "int4_b", "int4_mixed_b32", "4bit"):
        with pytest.raises(
            UsageError, match=rf"no quantization '{name}'\. Choose from: .*; or 2, 4, 8 bits in blocks of"
        ):
            find("onnx").scheme(name, Model("tiny", decoder(), "f32"))


def test_a_head_dimension_that_the_engine_cannot_take_is_refused() -> None:
    described = decoder(head_dim=12, rope=Rope(theta=10000.0, dim=12))
    with pytest.raises(UnsupportedModelError, match="head dimension of 12"):
        find("onnx").scheme("f32", Model("tiny", described, "f32"))


@pytest.mark.parametrize(("scheme", "number"), [("f16", 65520.0), ("f16", np.nan), ("int8", np.inf), ("int4", np.nan)])
def test_a_number_that_does_not_fit_names_its_row(tmp_path: Path, scheme: str, number: float) -> None:
    described = decoder()
    tensors = random_tensors(described)
    tensors["layers.1.attention.k"][5, 60] = number
    with pytest.raises(BuildError, match=rf"layers\.1\.attention\.k: row 5 .* does not fit {scheme}"):
        pack(tmp_path, described, tensors, scheme)


def test_the_largest_half_fits(tmp_path: Path) -> None:
    described = decoder()
    tensors = random_tensors(described)
    tensors["layers.1.attention.k"][5, 60] = 65519.0
    pack(tmp_path, described, tensors, "f16")
    assert find("onnx").read(tmp_path, described).rows("layers.1.attention.k", 5, 6)[0, 60] == 65504


def test_rows_that_are_missing_or_out_of_order_are_refused(tmp_path: Path) -> None:
    described = decoder()
    writer = find("onnx").open(tmp_path, Model("tiny", described, "f32"), "int4")
    with pytest.raises(BuildError, match="no place for the tensor head"):
        writer.write("head", 0, np.zeros((1, 64), np.float32))
    with pytest.raises(BuildError, match="rows 3 to 4 of 50"):
        writer.write("embedding", 3, np.zeros((1, 64), np.float32))
    with pytest.raises(BuildError, match="rows 0 to 51 of 50"):
        writer.write("embedding", 0, np.zeros((51, 64), np.float32))
    with pytest.raises(BuildError, match="rows 0 to 1 of 50"):
        writer.write("embedding", 0, np.zeros((1, 32), np.float32))
    writer.write("embedding", 0, np.zeros((49, 64), np.float32))
    with pytest.raises(BuildError, match="embedding: only 49 of 50 rows"):
        writer.finish()
    writer.abort()


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond ``size`` bytes, as on a disk that is nearly full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_shows_before_the_work(tmp_path: Path) -> None:
    described = decoder()
    with largest_file(100_000), pytest.raises(BuildError, match="could not be written: File too large"):
        find("onnx").open(tmp_path, Model("tiny", described, "f32"), "f32")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="missing could not be written: No such file"):
        find("onnx").open(tmp_path / "missing", Model("tiny", decoder(), "f32"), "f32")


STREAM = """
import sys
from pathlib import Path
import numpy as np
import onnx
from edgepack.bundle.decoder import Attention, Decoder, Layer, Mlp
from edgepack.bundle.rope import Rope
from edgepack.measuring.bench import peak_rss
from edgepack_packager.targets import Model, find
from edgepack_packager.checkpoint.weights import blocks
attention = Attention(n_heads=16, n_kv_heads=4, head_dim=64, rope=Rope(theta=10000.0, dim=64))
noise = np.random.default_rng(0).standard_normal(1 << 22, dtype=np.float32)
def stream(name, n_vocab, size):
    decoder = Decoder(family="llama", architecture="LlamaForCausalLM", n_layers=4, hidden_size=1024, n_vocab=n_vocab,
                      context=131072, norm_eps=1e-5, trained_context=131072, tied=True,
                      kinds=(Layer(mixer=attention, mlp=Mlp(size=size)),))
    shapes = dict(decoder.tensors())
    (place := Path(sys.argv[1]) / name).mkdir()
    writer = find("onnx").open(place, Model(name, decoder, "bf16"), "int4")
    for name, start, stop in blocks(decoder):
        shape = (stop - start, *shapes[name][1:])
        writer.write(name, start, noise[: np.prod(shape)].reshape(shape))
    writer.finish()
stream("small", 32, 32)
before = peak_rss()
stream("large", 32000, 4096)
print(peak_rss() - before)
"""


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    """375 MB of float32 pass through, after 44 of a small model, for which the kernels were loaded and the rope tables
    made; what the writer holds more is a few blocks' worth of codes."""
    done = subprocess.run(
        [sys.executable, "-c", STREAM, str(tmp_path)], capture_output=True, text=True, check=True, timeout=300
    )
    assert int(done.stdout) < 16e6


# onnxruntime-genai ---------------------------------------------------------------------------------------------------


def text_side() -> Text:
    files = {"tokenizer.json": b"{}", "chat_template.jinja": b"{{ messages }}", "README.md": b"not a tokenizer's file"}
    return Text(files=files, tokenizer={}, bos=1, add_bos=True, stops=(2, 7), chat_template="{{ messages }}")


def test_the_folder_of_a_model_with_text_has_what_genai_needs(tmp_path: Path) -> None:
    described = elaborate(context=100_000)
    pack(tmp_path, described, random_tensors(described), "int4", text_side())
    assert {file.name for file in tmp_path.iterdir()} == {
        "model.onnx",
        "model.onnx.data",
        "genai_config.json",
        "chat_template.jinja",
    }
    config = json.loads((tmp_path / "genai_config.json").read_text())
    model, search = config["model"], config["search"]
    assert (model["bos_token_id"], model["eos_token_id"], model["pad_token_id"]) == (1, [2, 7], 2)
    assert (model["context_length"], model["vocab_size"]) == (100_000, 50)
    assert (search["max_length"], search["past_present_share_buffer"]) == (4096, True)
    # As "phi3" it would compute the prompt again at 4097 tokens, and a sliding window is the graph's own affair.
    assert model["type"] == "llama"
    assert "sliding_window" not in model["decoder"]
    graph = onnx.load(str(tmp_path / "model.onnx"), load_external_data=False).graph
    inputs = {node.name for node in graph.input} - {node.name for node in graph.initializer}
    named = model["decoder"]["inputs"]
    layers = range(model["decoder"]["num_hidden_layers"])
    caches = {named[f"past_{part}_names"] % layer for part in ("key", "value") for layer in layers}
    assert inputs == {named["input_ids"], named["attention_mask"], *caches}


@pytest.mark.parametrize("layers", [(0, 2), (0, 1)], ids=["fewer caches than layers", "caches of two sizes"])
def test_genai_is_told_nothing_of_caches_that_it_would_not_make(tmp_path: Path, layers: tuple[int, int]) -> None:
    whole = shared()
    described = msgspec.structs.replace(whole, n_layers=2, **arranged([whole.layer(layer) for layer in layers]))
    pack(tmp_path, described, random_tensors(described), "f32", text_side())
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data", "chat_template.jinja"}


def test_a_template_for_tools_lies_where_other_tools_look_for_it(tmp_path: Path) -> None:
    described, text = decoder(), text_side()
    name = "additional_chat_templates/tool_use.jinja"
    text = replace(text, files={**text.files, name: b"{{ tools }}"}, tool_use="{{ tools }}")
    pack(tmp_path, described, random_tensors(described), "f32", text)
    assert (tmp_path / name).read_bytes() == b"{{ tools }}"


def test_a_slice_without_text_is_only_the_graph_and_its_data(tmp_path: Path) -> None:
    described = decoder()
    pack(tmp_path, described, random_tensors(described), "f32")
    assert {file.name for file in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
