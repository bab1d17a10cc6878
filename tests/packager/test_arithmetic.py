"""Arithmetic that is the same on every host: what it computes, and that no processor, library or thread changes it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from models import make_model
from numba import njit
from numpy._core._multiarray_umath import __cpu_dispatch__ as dispatched  # type: ignore[import-not-found]
from oracle_models import GEMMA2

from edgepack_packager import calibration, families, reference
from edgepack_packager.arithmetic import FASTEST, kernels
from edgepack_packager.arithmetic.repeatable import REPEATABLE, WIDTH
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.targets import levelling

RANDOM = np.random.default_rng(7)


@pytest.mark.parametrize("shape", [(1, 3, 1), (5, 7, 300), (130, 576, WIDTH), (33, 64, 2 * WIDTH + 1)])
def test_products_are_sums_in_the_order_of_their_terms(shape: tuple[int, int, int]) -> None:
    n, depth, m = shape
    x, rows = (RANDOM.normal(size=(count, depth)).astype(np.float32) for count in (n, m))
    expected = np.zeros((n, m), np.float32)
    for i in range(depth):
        expected += x[:, i : i + 1] * rows[:, i]
    assert np.array_equal(REPEATABLE.product(x, rows), expected)
    assert np.array_equal(REPEATABLE.product(np.asfortranarray(x), rows.T.copy().T), expected)


def test_no_neighbour_changes_a_product() -> None:
    x, rows = (RANDOM.normal(size=(60, 48)).astype(np.float32) for _ in range(2))
    whole = REPEATABLE.product(x, rows)
    assert np.array_equal(REPEATABLE.product(x[17:18], rows[31:33]), whole[17:18, 31:33])


@pytest.mark.parametrize("name", ["exp", "log1p", "tanh", "sin", "cos"])
def test_functions_are_correctly_rounded(name: str) -> None:
    reach = {"exp": 110, "log1p": 1, "tanh": 12, "sin": 30_000, "cos": 30_000}[name]
    drawn = [RANDOM.uniform(-reach, reach, 20_000), RANDOM.normal(0, 1, 20_000), [0, 1e-3, -88.7, 88.7]]
    x = np.concatenate(drawn).astype(np.float32)
    x = np.abs(x[np.abs(x) <= 1]) if name == "log1p" else x
    with np.errstate(over="ignore"):
        expected = getattr(np, name)(x.astype(np.float64)).astype(np.float32)
    # A result that lies in the middle between two numbers, to 2^-40 of their distance, may take the other.
    assert np.mean(getattr(REPEATABLE, name)(x) != expected) < 1e-4
    np.testing.assert_allclose(getattr(REPEATABLE, name)(x), expected, rtol=2.0**-23)


@pytest.mark.parametrize("columns", [1, 5, 128, 129, 300, WIDTH + 44])
def test_moments_and_their_factor_are_those_of_numpy(columns: int) -> None:
    x = RANDOM.normal(size=(70, columns)).astype(np.float32) * np.exp(RANDOM.normal(size=columns)).astype(np.float32)
    sums = np.zeros((columns, columns), np.float32)
    REPEATABLE.add_moments(x[:40], sums)
    REPEATABLE.add_moments(x[40:], sums)
    exact = x.astype(np.float64).T @ x
    unit = np.sqrt(exact.diagonal())
    np.testing.assert_allclose(np.tril(sums / np.outer(unit, unit)), np.tril(exact / np.outer(unit, unit)), atol=1e-6)
    matrix = np.tril(sums)
    matrix[np.diag_indices_from(matrix)] *= 2
    expected = np.linalg.cholesky(np.tril(exact) + np.tril(exact, -1).T + np.diag(exact.diagonal()))
    REPEATABLE.cholesky(matrix)
    np.testing.assert_allclose(np.tril(matrix) / unit[:, None], expected / unit[:, None], atol=1e-6)


def test_functions_of_no_number() -> None:
    x = np.array([np.inf, -np.inf, np.nan], np.float32)
    np.testing.assert_array_equal(REPEATABLE.exp(x), [np.inf, 0, np.nan])
    np.testing.assert_array_equal(REPEATABLE.tanh(x), [1, -1, np.nan])


def test_sums_are_rounded_once() -> None:
    x = np.array([[1e8, 1, -1e8], [0.1, 0.2, 0.3]], np.float32)
    assert REPEATABLE.total(x).tolist() == [[1], [np.float32(x[1].astype(np.float64).sum())]]
    assert REPEATABLE.squares(x).tolist() == [
        x[0, i].astype(np.float64) ** 2 + x[1, i].astype(np.float64) ** 2 for i in range(3)
    ]


def test_no_loop_is_fused_or_reordered() -> None:
    array, column = np.ones((4, 4), np.float32), np.ones(4, np.float32)
    arguments = {
        "multiply": (array, array, 0, array),
        "add_up": (array, column),
        "add_squares": (array, np.ones(4)),
        "factor": (np.eye(4), np.eye(4)),
        "exp": (column, column),
        "log1p": (column, column),
        "tanh": (column, column),
        "sin": (column, 1, column),
    }
    assert set(arguments) == {
        name for name, each in vars(kernels).items() if hasattr(each, "__wrapped__") and name[0] != "_"
    }
    columns = np.zeros(4, np.intp)
    choosing = array, array, array, array, array, columns, np.float32(15), array.astype(np.uint8), array
    loops = [(getattr(kernels, name), given) for name, given in arguments.items()]
    for function, given in [*loops, (levelling.choose, choosing)]:
        loop = njit(error_model="numpy")(function.__wrapped__)
        loop(*given)
        (code,), (machine,) = loop.inspect_llvm().values(), loop.inspect_asm().values()
        assert re.search(r"\bf(add|mul)\b", code)
        # Without these flags LLVM neither makes one operation of two nor changes an order, for any processor.
        assert not re.findall(r"\bf(?:add|sub|mul|div|neg)\b (?:\w+ )*(?:fast|contract|reassoc|arcp|afn)\b", code)
        assert not re.findall(r"llvm\.(?:fma|fmuladd|vector\.reduce\.f)", code)
        assert not re.findall(r"\bv?f(?:n?m(?:add|sub|la|ls))\w*", machine)


STATISTICS = """
import hashlib
import sys
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

from edgepack_packager import calibration, families, reference
from edgepack_packager.arithmetic import FASTEST
from edgepack_packager.arithmetic.repeatable import REPEATABLE
from edgepack_packager.calibration.feedback import Moments, digest
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.targets.feedback import levels

ids = np.random.default_rng(0).integers(0, 384, (4, 64)).tolist()
with open_checkpoint(Path(sys.argv[1])) as checkpoint:
    weights = families.open_model(checkpoint)
    matrices = {name: shape for name, shape in weights.decoder.tensors() if len(shape) == 2 and "." in name}
    moments = Moments(Path(sys.argv[2]), matrices)
    print(calibration.digest(calibration.importance(weights, [ids[:2], ids[2:]], also=moments.see)))
    feedback = moments.finish()
    print(digest(feedback))
    name, (rows, columns) = next(iter(matrices.items()))
    scales = np.full((rows, columns // 32), 0.01, np.float32)
    print(hashlib.sha256(levels(weights.rows(name, 0, rows), feedback[name], scales, -8 * scales, 32, 15)).hexdigest())
    print(calibration.digest(reference.cache_scales(weights, ids[0], arithmetic=REPEATABLE)))
    print(calibration.digest(reference.cache_scales(weights, ids[0], arithmetic=FASTEST)))
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="names processors of x86-64")
def test_statistics_are_the_same_on_every_processor(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", GEMMA2, seed=24)

    def on(processor: str, blas: str, threads: int, without: list[str]) -> list[str]:
        surroundings = {
            "NUMBA_CPU_NAME": processor,
            "NUMBA_CPU_FEATURES": "",
            "NUMBA_CACHE_DIR": str(tmp_path / processor),
            "OPENBLAS_CORETYPE": blas,
            "OPENBLAS_NUM_THREADS": str(threads),
            "NUMBA_NUM_THREADS": str(threads),
            "NPY_DISABLE_CPU_FEATURES": " ".join(without),
        }
        script = [sys.executable, "-c", STATISTICS, str(model), str(tmp_path / f"{processor}-moments")]
        done = subprocess.run(script, env=os.environ | surroundings, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()

    old, new = on("nehalem", "Nehalem", 1, list(dispatched)), on("haswell", "Haswell", 2, [])
    assert old[:-1] == new[:-1]
    assert old[-1] != new[-1], "what BLAS computes was expected to differ, so that this test can hear"
    with open_checkpoint(model) as checkpoint:
        weights = families.open_model(checkpoint)
        ids = np.random.default_rng(0).integers(0, 384, (4, 64)).tolist()
        here = calibration.importance(weights, [ids[:2], ids[2:]])
        assert calibration.digest(here) == new[0]
        exact = reference.cache_scales(weights, ids[0], arithmetic=FASTEST)
        for name, scales in reference.cache_scales(weights, ids[0], arithmetic=REPEATABLE).items():
            np.testing.assert_allclose(scales, exact[name], rtol=1e-4)
