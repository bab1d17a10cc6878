"""Grids are recovered: weights that were rounded to a few levels before are stored on those, and no others are."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from decoders import describe

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.rope import Rope
from edgepack.errors import BuildError
from edgepack_packager import targets
from edgepack_packager.checkpoint.weights import Float32, blocks
from edgepack_packager.proof import tensors
from edgepack_packager.proof.gates import missed
from edgepack_packager.targets import Form, Model, Request, grids
from edgepack_packager.targets.gguf.quantize import encode
from edgepack_packager.targets.gguf.recipe import Kind
from edgepack_packager.write import write

ROWS, COLUMNS = 64, 256
NMSE = 3e-6
"""The rounding of the source's bf16; as much again where scales are of that type as well."""

SIGNED = Form("q4_0", 4, 32)
AFFINE = Form("affine", 4, 32, "f16")
WHOLE = Form("asymmetric", 4, 32, "f32")

Make = Callable[[np.random.Generator, tuple[int, int]], Float32]


def in_groups(shape: tuple[int, int], group: int) -> tuple[int, int, int]:
    return shape[0], shape[1] // group, group


def four_bits(random: np.random.Generator, shape: tuple[int, int], group: int = 32) -> Float32:
    """Trained for 4 bits: levels from -8 to 7 times a scale, of either sign."""
    three = in_groups(shape, group)
    levels = np.clip(np.rint(random.normal(0, 3, three)), -8, 7)
    scales = random.uniform(0.005, 0.02, (*three[:2], 1)) * random.choice([-1, 1], (*three[:2], 1))
    return (levels * scales).reshape(shape).astype(np.float32)


def wide(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return four_bits(random, shape, 64)


def ternary(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return (random.integers(-1, 2, shape) * random.uniform(0.01, 0.1, (shape[0], 1))).astype(np.float32)


def sparse(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Ternary, and most are zero."""
    return ternary(random, shape) * (random.random(shape) < 0.4).astype(np.float32)


def two_bits(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """All four levels, from -2 to 1 times a scale."""
    return (random.integers(-2, 2, shape) * random.uniform(0.01, 0.1, (shape[0], 1))).astype(np.float32)


def two_shifted_bits(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Four levels around zero, without it: -1.5, -0.5, 0.5 and 1.5 times a scale."""
    return ((random.integers(0, 4, shape) - 1.5) * random.uniform(0.01, 0.1, (shape[0], 1))).astype(np.float32)


def binary(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return (random.choice([-1, 1], shape) * random.uniform(0.01, 0.1, (shape[0], 1))).astype(np.float32)


def pairs(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Four levels of two bits, from -2 to 1 times a scale of either sign for 64 neighbours."""
    three = in_groups(shape, 64)
    scales = random.uniform(0.01, 0.1, (*three[:2], 1)) * random.choice([-1, 1], (*three[:2], 1))
    return (random.integers(-2, 2, three) * scales).reshape(shape).astype(np.float32)


def awq(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """As GPTQ and AWQ export: levels from 0 to 15 less a whole zero point, in groups of 128."""
    three = in_groups(shape, 128)
    zeros = random.integers(3, 13, (*three[:2], 1))
    levels = np.clip(np.rint(random.normal(zeros, 3, three)), 0, 15) - zeros
    return (levels * random.uniform(0.005, 0.02, (*three[:2], 1))).reshape(shape).astype(np.float32)


def shifted(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """As llama.cpp's Q4_1: levels from 0 to 15 times a scale, and a minimum that is no multiple of it."""
    three = in_groups(shape, 32)
    scales = random.uniform(0.005, 0.02, (*three[:2], 1))
    levels = np.clip(np.rint(random.normal(7.5, 3, three)), 0, 15)
    return (levels * scales - random.uniform(5, 10, scales.shape) * scales).reshape(shape).astype(np.float32)


def normal(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return random.normal(0, 0.02, shape).astype(np.float32)


def heavy(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    return (0.01 * random.standard_t(3, shape)).astype(np.float32)


def pruned(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """A twentieth of the weights is left: many groups have one, which any scale explains."""
    return normal(random, shape) * (random.random(shape) < 0.05).astype(np.float32)


def eight_bits(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    scales = random.uniform(0.0005, 0.002, (shape[0], 1))
    return (np.clip(np.rint(random.normal(0, 40, shape)), -127, 127) * scales).astype(np.float32)


def uneven(random: np.random.Generator, shape: tuple[int, int]) -> Float32:
    """Sixteen levels that are not equally far apart, as NF4's."""
    levels = np.sort(random.normal(0, 1, 16))
    return (levels[random.integers(0, 16, shape)] * random.uniform(0.01, 0.1, (shape[0], 1))).astype(np.float32)


def as_type(rows: Float32, dtype: str) -> Float32:
    if dtype == "f16":
        return rows.astype(np.float16).astype(np.float32)
    if dtype == "f32":
        return rows
    bits = rows.view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


class Made:
    """``Weights`` with all matrices from one recipe, as a type keeps them."""

    def __init__(self, make: Make, dtype: str = "bf16") -> None:
        self.dtype = dtype
        self.decoder: Decoder = describe(
            family="llama",
            architecture="LlamaForCausalLM",
            n_layers=1,
            hidden_size=COLUMNS,
            n_heads=4,
            n_kv_heads=2,
            head_dim=64,
            n_vocab=ROWS,
            intermediate_size=COLUMNS,
            context=96,
            norm_eps=1e-5,
            rope=Rope(theta=10000.0, dim=64),
            tied=False,
        )
        self.tensors = {
            name: as_type(make(np.random.default_rng([*name.encode()]), shape), dtype)
            if len(shape) == 2
            else np.ones(shape, np.float32)
            for name, shape in self.decoder.tensors()
        }

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self.tensors[name][start:stop]


def packed(weights: Made, target: str, scheme: str, folder: Path) -> Path:
    chosen = targets.find(target)
    request = Request(chosen, scheme, scheme)
    write(weights, [request], folder, Model("made", weights.decoder, weights.dtype))
    return folder / request.id


def lost(weights: Made, target: str, scheme: str, folder: Path, part: str = "") -> tuple[float, str]:
    """Return the NMSE of all matrices whose name has a part, as the target's own reader reads them back, and the type
    of their scales."""
    reader = targets.find(target).read(packed(weights, target, scheme, folder), weights.decoder)
    error = power = 0.0
    for name, start, stop in blocks(weights.decoder):
        if (rows := weights.rows(name, start, stop)).ndim == 2 and part in name:
            error += np.square(reader.rows(name, start, stop).astype(np.float64) - rows).sum()
            power += np.square(rows.astype(np.float64)).sum()
    scales = reader.form("layers.0.mlp.up").scales
    reader.close()
    return error / power, scales


def proven(source: Made, written: Made, target: str, scheme: str, folder: Path) -> tensors.Tensors:
    return tensors.prove(targets.find(target), packed(written, target, scheme, folder), source, lambda _: None)


# Through the writers and readers --------------------------------------------------------------------------------------

HOLD = [
    *(("gguf", "q4_0", make) for make in (four_bits, wide, ternary, sparse, binary)),
    *(("gguf", "q4_1", make) for make in (awq, shifted)),
    *(("gguf", "q8_0", make) for make in (four_bits, ternary, awq)),
    *(("gguf", "q2_0", make) for make in (ternary, sparse, binary, pairs)),
    ("gguf", "q1_0", binary),
    *(("onnx", "int4", make) for make in (four_bits, wide, ternary, sparse, binary)),
    *(("onnx", "int4_mixed", make) for make in (wide, ternary, binary)),
    *(("onnx", "int4_asym", make) for make in (four_bits, wide, ternary, sparse, binary, awq)),
    ("onnx", "int4_b128_asym", awq),
    *(("onnx", "int8", make) for make in (four_bits, binary, awq)),
    *(("mlx", "4bit_g32", make) for make in (four_bits, wide, ternary, sparse, binary, awq, shifted)),
    *(("mlx", "4bit", make) for make in (wide, ternary, binary)),
    *(("mlx", "4bit_mixed", make) for make in (wide, ternary, binary)),
    *(("mlx", "8bit", make) for make in (wide, ternary, binary)),
    *(("onnx", "int2", make) for make in (two_bits, ternary, sparse, binary)),
    *(("onnx", "int2_b128", make) for make in (ternary,)),
    *(("mlx", "2bit", make) for make in (two_bits, ternary, sparse, binary)),
    *(("mlx", "2bit_g128", make) for make in (binary,)),
    *(("mlx", "3bit_g32", make) for make in (ternary,)),
]


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(("target", "scheme", "make"), HOLD)
def test_what_lies_on_a_grid_is_stored_on_it(target: str, scheme: str, make: Make, dtype: str, tmp_path: Path) -> None:
    """llama.cpp gives the head 6 bits of a K-quant, whatever it holds."""
    nmse, scales = lost(Made(make, dtype), target, scheme, tmp_path, "layers." if target == "gguf" else "")
    assert nmse <= NMSE * (2 if scales == "bf16" else 1)


@pytest.mark.parametrize(
    ("target", "scheme"), [("onnx", "int2"), ("onnx", "int2_b128"), ("mlx", "2bit"), ("mlx", "2bit_g32")]
)
@pytest.mark.parametrize("make", [ternary, sparse, binary])
def test_two_bits_store_ternary_and_binary_weights_as_they_are(
    make: Make, target: str, scheme: str, tmp_path: Path
) -> None:
    assert lost(Made(make), target, scheme, tmp_path)[0] == 0


@pytest.mark.parametrize("dtype", ["f16", "f32"])
def test_a_bias_holds_four_levels_around_zero(dtype: str, tmp_path: Path) -> None:
    """With bf16 for scale and bias, both are rounded once more."""
    assert lost(Made(two_shifted_bits, dtype), "mlx", "2bit", tmp_path)[0] <= NMSE


def test_two_bits_hold_no_grid_of_more_levels(tmp_path: Path) -> None:
    for target, scheme in (("onnx", "int2"), ("mlx", "2bit_g32")):
        found = proven(Made(four_bits), Made(four_bits), target, scheme, tmp_path / target)
        assert (missed(found.findings), found.exact, found.others) == ([], 0, 9)


@pytest.mark.parametrize(("target", "scheme", "make"), HOLD)
def test_the_proof_counts_what_is_exact(target: str, scheme: str, make: Make, tmp_path: Path) -> None:
    weights = Made(make)
    found = proven(weights, weights, target, scheme, tmp_path)
    assert missed(found.findings) == []
    assert any(finding.gate.name == "tensors.grid" for finding in found.findings)
    exact = {"q8_0": 9, "q1_0": 7, "q2_0": 7}.get(scheme, 8) if target == "gguf" else 9
    assert (found.exact, found.quantised) == (exact, 9)
    assert all(figure.get("exact", 1) == 1 for figure in found.figures.values())


@pytest.mark.parametrize(
    ("target", "scheme", "make"),
    [
        ("gguf", "q4_0", four_bits),
        ("gguf", "q2_0", pairs),
        ("gguf", "q1_0", binary),
        ("onnx", "int4", four_bits),
        ("onnx", "int4_b128_asym", awq),
        ("mlx", "4bit_g32", shifted),
        ("mlx", "4bit", wide),
        ("onnx", "int2", ternary),
        ("mlx", "2bit", binary),
    ],
)
def test_a_grid_that_is_off_by_one_level_is_heard(target: str, scheme: str, make: Make, tmp_path: Path) -> None:
    """One weight of a matrix, by the least step between two of its group's levels: still a grid, and another."""
    sound, other = Made(make), Made(make)
    row = other.tensors["layers.0.mlp.up"][5]
    levels = np.unique(row[:32])
    lower = (len(levels) - 1) // 2
    row[int(np.flatnonzero(row[:32] == levels[lower])[0])] = levels[lower + 1]
    found = missed(proven(sound, other, target, scheme, tmp_path).findings)
    assert any(each.startswith("tensors.grid is ") and "row 5 of layers.0.mlp.up" in each for each in found), found


@pytest.mark.parametrize(
    ("scheme", "make", "levels"),
    [("q1_0", ternary, "-1 and 1"), ("q1_0", normal, "-1 and 1"), ("q2_0", four_bits, "-1, 0, 1 and 2")],
)
def test_a_scheme_for_grids_refuses_other_weights(scheme: str, make: Make, levels: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=rf"layers\.0\.\S+ lies on no grid that {scheme} holds: {levels}") as error:
        packed(Made(make), "gguf", scheme, tmp_path)
    assert "q4_k_m" in str(error.value)


@pytest.mark.parametrize("least", [-15, -8, 0, 1])
def test_a_zero_point_is_a_level_itself(least: int) -> None:
    """Fifteen steps hold zero where the lowest level is none to fifteen steps below it, and not where it is above."""
    levels = np.random.default_rng(4).integers(least, least + 16, (ROWS, COLUMNS))
    levels[:, ::32], levels[:, 1::32] = least, least + 15
    rows = as_type((levels * np.float32(0.013)).astype(np.float32), "bf16")
    found = grids.recover(rows, WHOLE)
    assert (found is None) == (least > 0)
    if found is not None:
        assert found.rows.tolist() == list(range(ROWS))
        np.testing.assert_array_equal(found.zeros, -least)
        np.testing.assert_allclose(found.scales, 0.013, rtol=2.0**-9)


def test_a_bias_that_is_no_whole_number_of_steps_is_no_zero_point() -> None:
    rows = as_type(shifted(np.random.default_rng(5), (ROWS, COLUMNS)), "bf16")
    assert grids.recover(rows, AFFINE) is not None
    assert grids.recover(rows, WHOLE) is None


@pytest.mark.parametrize(("kind", "make"), [("q1_0", binary), ("q2_0", ternary)])
def test_few_bits_lose_nothing_of_few_levels(kind: Kind, make: Make, tmp_path: Path) -> None:
    """ggml's own rule meets these grids as well: a row of zeros has none, and is kept."""
    weights = Made(make)
    weights.tensors["layers.0.mlp.up"][3] = 0
    assert lost(weights, "gguf", kind, tmp_path, "layers.") == (0, "f16")
    rows = weights.tensors["layers.0.mlp.down"]
    assert encode(kind, rows, "rows").tobytes() in (tmp_path / f"gguf-{kind}" / "model.gguf").read_bytes()


def test_what_a_scheme_cannot_hold_is_told(tmp_path: Path) -> None:
    weights = Made(four_bits)
    for target, scheme in (("gguf", "q4_k_m"), ("onnx", "int4_mixed"), ("mlx", "4bit")):
        found = proven(weights, weights, target, scheme, tmp_path / target)
        assert missed(found.findings) == []
        assert (found.exact, found.others) == (0, 9)
    assert proven(Made(normal), Made(normal), "gguf", "q4_k_m", tmp_path / "normal").others == 0


# What is a grid, and what is none -------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("make", [normal, heavy, pruned, eight_bits, uneven])
@pytest.mark.parametrize("form", [SIGNED, AFFINE, Form("q8_0", 8, 32), Form("signed", 4, 64, "f32"), WHOLE])
def test_ordinary_weights_lie_on_none(form: Form, make: Make, dtype: str) -> None:
    rows = as_type(make(np.random.default_rng(1), (20000, COLUMNS)), dtype)
    assert grids.recover(rows, form) is None


@pytest.mark.parametrize("make", [normal, heavy, pruned])
def test_ordinary_weights_have_their_peers_bytes(make: Make, tmp_path: Path) -> None:
    weights = Made(make)
    folder = packed(weights, "gguf", "q4_0", tmp_path)
    rows = weights.tensors["layers.0.mlp.down"]
    assert encode("q4_0", rows, "rows").tobytes() in (folder / "model.gguf").read_bytes()


@pytest.mark.parametrize("form", [SIGNED, AFFINE])
def test_one_weight_beside_its_level_ends_its_row_and_no_other(form: Form) -> None:
    rows = as_type(four_bits(np.random.default_rng(2), (ROWS, COLUMNS)), "bf16")
    rows[7, 200] += np.abs(rows[7, 192:224]).max() / 20
    found = grids.recover(rows, form)
    assert found is not None
    assert found.rows.tolist() == [row for row in range(ROWS) if row != 7]


@pytest.mark.parametrize("form", [SIGNED, AFFINE])
@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_lies_on_none(number: float, form: Form) -> None:
    for place in (0, 40, 255):
        rows = four_bits(np.random.default_rng(3), (2, COLUMNS))
        rows[1, place] = number
        found = grids.recover(rows, form)
        assert found is not None
        assert found.rows.tolist() == [0]


@pytest.mark.parametrize("form", [SIGNED, AFFINE])
def test_groups_of_zeros_lie_on_any_and_rows_of_zeros_on_none(form: Form) -> None:
    rows = four_bits(np.random.default_rng(4), (3, COLUMNS))
    rows[0, 32:96] = 0
    rows[1] = 0
    found = grids.recover(rows, form)
    assert found is not None
    assert found.rows.tolist() == [0, 2]
    assert (found.scales[0, 1:3] == 0).all()
    assert np.isfinite(found.biases).all()


def test_the_coarsest_grid_is_found() -> None:
    rows = np.tile(np.array([0, 3, -3, 6], np.float32), (2, COLUMNS // 4))
    found = grids.recover(rows, SIGNED)
    assert found is not None
    assert (found.scales == 3).all()


def test_eight_steps_on_both_sides_are_one_too_many_for_four_bits() -> None:
    rows = four_bits(np.random.default_rng(5), (2, COLUMNS))
    rows[0, :3] = np.array([8, -8, 1], np.float32) / 64
    rows[0, 3:32] = np.arange(-7, 22, dtype=np.float32) % 8 / 64
    found = grids.recover(rows, SIGNED)
    assert found is not None
    assert found.rows.tolist() == [1]
    assert grids.recover(rows, Form("q5_0", 5, 32)) is not None


def test_scales_that_half_precision_cannot_hold_are_left_to_the_plain_rule() -> None:
    rows = four_bits(np.random.default_rng(6), (ROWS, COLUMNS))
    for by in (2.0**-14, 2.0**24):
        assert grids.recover(rows * np.float32(by), SIGNED) is None
        assert grids.recover(rows * np.float32(by), Form("signed", 4, 32, "f32")) is not None


@pytest.mark.parametrize("form", [SIGNED, AFFINE])
def test_a_row_is_judged_alone(form: Form) -> None:
    mixed = np.concatenate([make(np.random.default_rng(7), (20, COLUMNS)) for make in (normal, four_bits, heavy)])
    whole, part = grids.recover(mixed, form), grids.recover(mixed[13:31], form)
    assert whole is not None
    assert part is not None
    assert whole.rows.tolist() == list(range(20, 40))
    assert part.rows.tolist() == list(range(7, 18))
    assert np.array_equal(whole.scales[:11], part.scales)
    assert np.array_equal(whole.biases[:11], part.biases)


def test_a_recovery_gives_the_same_scales_on_every_host() -> None:
    rows = (np.arange(2 * COLUMNS) * 7919 % 16 - 8).reshape(2, COLUMNS).astype(np.float32) * np.float32(0.0123)
    found = [grids.recover(as_type(rows, "bf16"), Form(kind, 4, 32, "f32")) for kind in ("q4_0", "q4_1")]
    digests = [hashlib.sha256(each.scales.tobytes() + each.biases.tobytes()).hexdigest()[:16] for each in found if each]
    assert digests == ["c1b8be5878ab8b18", "62670c980e054071"]
