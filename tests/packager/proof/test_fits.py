"""The searches of the proof's own rules: no other of the steps that they try loses less."""

from __future__ import annotations

import numpy as np
import pytest

from edgepack_packager.proof import fits

PARTS = np.array([14, 15, 16, 17], np.float32)


def groups(size: int, n: int = 100) -> np.ndarray:
    """Groups side by side: normal ones, and one each of zeros, of equal weights, and of weights of one sign."""
    found = np.random.default_rng(size).standard_normal((size, n), np.float32)
    found[:, 0], found[:, 1], found[:, 2] = 0, 3, np.abs(found[:, 2])
    return found


@pytest.mark.parametrize("size", [16, 32])
def test_the_best_line_through_levels_from_zero(size: int) -> None:
    x = groups(size)
    scales, offsets = np.empty((2, x.shape[1]), np.float32)
    fits.affine(x, PARTS, np.float32(15), scales, offsets)
    for g, own in enumerate(x.astype(np.float64).T):
        least, low = np.inf, min(own.min(), 0)
        for part in PARTS:
            step = (max(own.max(), 0) - low) / part
            q = np.clip(np.rint((own - low) / step), 0, 15) if step else np.zeros(size)
            slope, offset = np.linalg.lstsq(np.stack([q, np.ones(size)], axis=1), own, rcond=None)[0]
            if offset > 0:
                slope, offset = own @ q / (q @ q), 0.0
            error = np.square(q * slope + offset - own).sum()
            if error < least:
                least, best = error, (slope, offset)
        if np.ptp(own):
            np.testing.assert_allclose((scales[g], offsets[g]), best, rtol=1e-3, atol=1e-5)
    assert scales[0] == offsets[0] == 0


@pytest.mark.parametrize("size", [16, 32])
def test_the_best_multiple_of_levels_of_either_sign(size: int) -> None:
    x = groups(size)
    scales = np.empty(x.shape[1], np.float32)
    parts = -PARTS
    fits.signed(x, parts, np.float32(-16), np.float32(15), scales)
    for g, own in enumerate(x.astype(np.float64).T):
        peak, least, best = own[np.abs(own).argmax()], np.inf, 0.0
        for part in parts:
            q = np.clip(np.rint(own / (peak / part)), -16, 15) if peak else np.zeros(size)
            w = np.square(own)
            scale = (w * own) @ q / ((w * q) @ q) if q.any() else 0.0
            error = w @ np.square(scale * q - own)
            if error < least:
                least, best = error, scale
        np.testing.assert_allclose(scales[g], best, rtol=1e-3, atol=1e-6)
