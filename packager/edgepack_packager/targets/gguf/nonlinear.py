"""ggml's iq4_nl and iq4_xs: sixteen levels that lie closer together near zero, times a scale for 32 weights.

Their bytes are those of ``ggml_quantize_chunk``, with an importance or without, as x86-64 computes them, on every host.
Groups go side by side, as in ``kernels``. Source: ``quantize_row_iq4_nl_impl`` in ggml-quants.c.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined
from edgepack_packager.targets.gguf.kernels import LANES
from edgepack_packager.targets.gguf.kquants import in_steps, louder

Bytes = NDArray[np.uint8]

GROUP = 32
SUPER = 256
STEP = 2048
"""Groups that are encoded at a time, so that the passes over them stay in the cache."""

TRIES = 7
"""Levels to either side of the lowest that the weight of largest magnitude is tried at."""

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""ggml's ``kvalues_iq4nl``."""

_BETWEEN = (LEVELS[1:] + LEVELS[:-1]) / 2
_GAPS = np.diff(LEVELS)
_LOWEST, _ZERO, _ONE = LEVELS[0], np.float32(0), np.float32(1)
_FLAT = np.float32(1e-15)


def encode(rows: Float32, importance: Float32 | None, grouped: bool) -> Bytes:
    """Return float32 [n, columns] as uint8 [n, row bytes]: of iq4_xs where eight groups share the unit of their scales.

    ``importance`` is what an error in each column counts, float32 [columns]. A scale that half precision cannot hold
    becomes an infinity or NaN in it: the first two bytes of every block.
    """
    parts = []
    for part, counts in in_steps(rows.reshape(-1, GROUP), importance, STEP):
        weights = np.square(part)
        if counts is not None:
            blocks = part.reshape(-1, SUPER if grouped else GROUP)
            weights = counts * louder(blocks, np.float32(2)).reshape(part.shape)
        scales = np.empty(len(part), np.float32)
        fit(part, weights, scales)
        parts.append(_in_blocks(part, scales) if grouped else _alone(part, scales))
    return np.concatenate(parts).reshape(len(rows), -1)


def _alone(groups: Float32, scales: Float32) -> Bytes:
    with np.errstate(all="ignore"):
        inverse = np.where(scales != 0, np.float32(1) / scales, np.float32(0))
        half = scales[:, None].astype("<f2")
    return np.concatenate([half.view(np.uint8), _nibbles(groups, inverse)], axis=1)


def _in_blocks(groups: Float32, scales: Float32) -> Bytes:
    rows = scales.reshape(-1, SUPER // GROUP)
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1, keepdims=True), axis=1)
    unit = -largest / np.float32(32)
    with np.errstate(all="ignore"):
        multiples = np.where(unit != 0, np.clip(np.rint(np.float32(1) / unit * rows), -32, 31), np.float32(0))
        own = unit * multiples
        inverse = np.where(own != 0, np.float32(1) / own, np.float32(0)).reshape(-1)
        half = unit.astype("<f2")
    sixes = (multiples + 32).astype(np.uint8)
    low = sixes[:, ::2] & 15 | (sixes[:, 1::2] & 15) << 4
    high = (sixes >> 4).astype("<u2") << np.arange(0, 16, 2, dtype="<u2")
    high = np.bitwise_or.reduce(high, axis=1, keepdims=True).astype("<u2")
    nibbles = _nibbles(groups, inverse).reshape(len(rows), -1)
    return np.concatenate([half.view(np.uint8), high.view(np.uint8), low, nibbles], axis=1)


def _nibbles(groups: Float32, inverse: Float32) -> Bytes:
    codes = np.empty(groups.shape, np.uint8)
    nearest(groups, np.ascontiguousarray(inverse, np.float32), codes)
    packed: Bytes = codes[:, :16] | codes[:, 16:] << np.uint8(4)
    return packed


@compiled
def fit(groups: Float32, weights: Float32, scales: Float32) -> None:
    """Find the scale of each group, float32 [n, 32], that loses least: fills ``scales``, float32 [n].

    ``weights``: what the square of each error counts, float32 [n, 32].
    """
    x, w = np.empty((GROUP, LANES), np.float32), np.empty((GROUP, LANES), np.float32)
    peak, inverse, scale = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    sum_xq, sum_qq, best = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for first in range(0, len(groups), LANES):
        peak[:] = _ZERO
        for g in range(LANES):
            row = min(first + g, len(groups) - 1)
            for i in range(GROUP):
                v = groups[row, i]
                x[i, g], w[i, g] = v, weights[row, i]
                peak[g] = v if abs(v) > abs(peak[g]) else peak[g]
        for k in range(-TRIES - 1, TRIES + 1):
            for g in range(LANES):
                # first the lowest level's opposite, by another division
                inverse[g] = _ONE / (-peak[g] / _LOWEST) if k < -TRIES else (np.float32(k) + _LOWEST) / peak[g]
            sum_xq[:], sum_qq[:] = _ZERO, _ZERO
            for i in range(GROUP):
                for g in range(LANES):
                    q = _level(inverse[g] * x[i, g])
                    wq = w[i, g] * q
                    sum_xq[g] += wq * x[i, g]
                    sum_qq[g] += wq * q
            for g in range(LANES):
                fitted = sum_xq[g] / sum_qq[g] if sum_qq[g] > _ZERO else _ZERO
                better = sum_qq[g] > _ZERO and sum_xq[g] * sum_xq[g] > best[g] * sum_qq[g]
                if better or k < -TRIES:
                    scale[g], best[g] = fitted, fitted * sum_xq[g]
        for g in range(min(LANES, len(groups) - first)):
            scales[first + g] = scale[g] if abs(peak[g]) >= _FLAT else _ZERO


@compiled
def nearest(groups: Float32, inverse: Float32, codes: Bytes) -> None:
    """Give each weight of groups, float32 [n, 32], the nearest level of ``inverse * x``: fills ``codes``, [n, 32]."""
    for g in range(len(groups)):
        for i in range(GROUP):
            value = inverse[g] * groups[g, i]
            code = 0
            for k in range(15):
                code += not value < _BETWEEN[k]
            codes[g, i] = code


@inlined
def _level(value: np.float32) -> np.float32:
    level: np.float32 = _LOWEST
    for k in range(15):
        level += _ZERO if value < _BETWEEN[k] else _GAPS[k]
    return level
