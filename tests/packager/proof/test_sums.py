"""The sums of rows, against numpy in float64."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack_packager.proof import sums


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 1000])
def test_the_three_sums_of_each_row(columns: int) -> None:
    rng = np.random.default_rng(columns)
    expected, actual = rng.standard_normal((2, 7, columns), np.float32)
    ours, theirs = expected.astype(np.float64), actual.astype(np.float64)
    found = sums.of_rows(expected, actual)
    for one, other in zip(found, (np.square(theirs - ours), np.square(ours), ours * theirs), strict=True):
        np.testing.assert_allclose(one, other.sum(axis=1), rtol=1e-12, atol=1e-12)


def test_what_is_no_number_is_in_the_sums_of_its_row_alone() -> None:
    expected = np.ones((3, 40), np.float32)
    actual = expected.copy()
    actual[1, 39] = np.nan
    error, power, dot = sums.of_rows(expected, actual)
    assert np.isnan([error[1], dot[1]]).all()
    assert np.isfinite([error[::2], dot[::2]]).all()
    assert power.tolist() == [40, 40, 40]
