"""ggml's iq3_s: four magnitudes at once are one of 512 points, and 32 weights have a multiple of their block's scale.

The bytes are those of ``ggml_quantize_chunk``, with an importance or without, as x86-64 computes them, on every host;
but where 32 weights are all zero: ggml then puts what follows them in their place, and reads other numbers back.
Source: ``quantize_row_iq3_s_impl`` and ``iq3xs_init_impl`` in ggml-quants.c. The points themselves are those of the
package gguf.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.jit import compiled, inlined
from edgepack_packager.targets.gguf.kernels import whole
from edgepack_packager.targets.gguf.kquants import in_steps, louder, nearest

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]

BLOCK = 256
GROUP = 32
STEP = 512
"""Blocks that are encoded at a time, so that the passes over them stay in the cache."""

_DISTANCES = 3
"""How many of the least distances a point that is none of the 512 may move by."""

_FUDGE = np.float32(1.033)
"""What ggml multiplies the unit of a block's scales by, which loses less."""

_ZERO, _ONE, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_TOP = 7


@cache
def points() -> Bytes:
    """Return the magnitudes of the points, odd numbers to 15: uint8 [512, 4]."""
    from gguf.quants import IQ3_S

    IQ3_S.init_grid()
    found: Bytes = np.ascontiguousarray(IQ3_S.grid.reshape(512, 4), np.uint8)
    return found


@cache
def neighbours() -> tuple[Ints, Ints, Ints]:
    """Return what stands for each of the 4096 corners, whose digits of 3 bits are halved magnitudes.

    The number of its point, int32 [4096], -1 where it is none; and the points near one that is none, nearest first:
    where they begin, int32 [4097], among all of them.
    """
    halved = np.arange(4096)[:, None] >> np.array([0, 3, 6, 9]) & 7
    known = points().astype(np.int32)
    exact = np.full(4096, -1, np.int32)
    exact[(known // 2) @ np.array([1, 8, 64, 512])] = np.arange(512)
    begin, near = np.zeros(4097, np.int32), []
    for corner in range(4096):
        if exact[corner] < 0:
            distance = np.square(known - (2 * halved[corner] + 1)).sum(axis=1)
            order = np.argsort(distance, kind="stable")
            near.append(order[distance[order] <= np.unique(distance)[_DISTANCES - 1]])
        begin[corner + 1] = begin[corner] + (len(near[-1]) if exact[corner] < 0 else 0)
    return exact, begin, np.concatenate(near).astype(np.int32)


def encode(rows: Float32, importance: Float32 | None) -> Bytes:
    """Return float32 [n, columns] as uint8 [n, row bytes].

    ``importance`` is what an error in each column counts, float32 [columns]. A scale that half precision cannot hold
    becomes an infinity or NaN in it: the first two bytes of every block.
    """
    parts = [
        _blocks(part, np.square(part) if counts is None else counts * louder(part, np.float32(2)))
        for part, counts in in_steps(rows.reshape(-1, BLOCK), importance, STEP)
    ]
    return np.concatenate(parts).reshape(len(rows), -1)


def _blocks(blocks: Float32, weights: Float32) -> Bytes:
    groups = np.abs(blocks).reshape(-1, GROUP)
    scales, chosen = np.zeros(len(groups), np.float32), np.zeros((len(groups), 8), np.int32)
    fit(
        groups, weights.reshape(-1, GROUP), np.sqrt(weights).reshape(-1, GROUP), points(), *neighbours(), scales, chosen
    )
    rows = scales.reshape(-1, 8)
    most = rows.max(axis=1, keepdims=True)
    unit = most / np.float32(31)
    with np.errstate(all="ignore"):
        inverse = np.where(most > 0, _ONE / unit, _ZERO)
        multiples = np.clip(nearest(_HALF * (inverse * rows - _ONE)), 0, 15).astype(np.uint8)
        half = (unit * _FUDGE).astype("<f2")
    multiples[most[:, 0] == 0] = 0
    signs = np.packbits((blocks < 0).reshape(len(blocks), 32, 8), axis=2, bitorder="little").reshape(-1, 32)
    low, high = (chosen & 255).astype(np.uint8).reshape(-1, 64), np.packbits(chosen >> 8, axis=1, bitorder="little")
    packed = multiples[:, ::2] | multiples[:, 1::2] << 4
    return np.concatenate([half.view(np.uint8), low, high.reshape(-1, 8), signs, packed], axis=1)


@compiled
def fit(
    groups: Float32,
    weights: Float32,
    roots: Float32,
    known: Bytes,
    exact: Ints,
    begin: Ints,
    near: Ints,
    scales: Float32,
    chosen: Ints,
) -> None:
    """Find the scale and the points of each group of magnitudes, float32 [n, 32], that lose least.

    ``weights``: what the square of each error counts, float32 [n, 32]; for a point alone it is their ``roots``.
    ``exact``, ``begin`` and ``near`` as of ``neighbours``, of ``points``. Fills ``scales``, float32 [n], and the
    numbers of the points: ``chosen``, int32 [n, 8].
    """
    tried = np.empty(8, np.int32)
    for g in range(len(groups)):
        x, w, root, found = groups[g], weights[g], roots[g], chosen[g]
        most = x.max()
        if not most:
            continue
        best, scale, all_on = _ZERO, most / np.float32(2 * _TOP + 1), False
        for k in range(-9, 10):
            inverse = (np.float32(2 * _TOP + 1) + np.float32(k) * np.float32(0.2)) / most
            on = _points(x, root, inverse, _ONE / inverse, known, exact, begin, near, tried)
            xq, qq = _sums(x, w, known, tried)
            if qq > _ZERO and xq * xq > best * qq:
                scale = xq / qq
                best = scale * xq
                found[:] = tried
                all_on = on
        if not all_on and scale > _ZERO:
            _points(x, root, _ONE / scale, scale, known, exact, begin, near, found)
            xq, qq = _sums(x, w, known, found)
            if qq > _ZERO:
                scale = xq / qq
        scales[g] = scale


@inlined
def _points(
    x: Float32,
    root: Float32,
    inverse: np.float32,
    scale: np.float32,
    known: Bytes,
    exact: Ints,
    begin: Ints,
    near: Ints,
    chosen: Ints,
) -> bool:
    """Choose a point for each four of a group's magnitudes, and say whether all of them lie where rounding put them."""
    all_on = True
    for k in range(8):
        corner = 0
        for i in range(4):
            level = whole(_HALF * (inverse * x[4 * k + i] - _ONE))
            corner |= (0 if level < 0 else _TOP if level > _TOP else level) << 3 * i
        point = exact[corner]
        if point < 0:
            all_on = False
            least = np.float32(np.inf)
            for at in range(begin[corner], begin[corner + 1]):
                distance = _ZERO
                for i in range(4):
                    off = scale * np.float32(known[near[at], i]) - x[4 * k + i]
                    distance += root[4 * k + i] * off * off
                if distance < least:
                    least, point = distance, near[at]
        chosen[k] = point
    return all_on


@inlined
def _sums(x: Float32, w: Float32, known: Bytes, chosen: Ints) -> tuple[np.float32, np.float32]:
    xq, qq = _ZERO, _ZERO
    for i in range(GROUP):
        q = np.float32(known[chosen[i // 4], i % 4])
        xq += w[i] * x[i] * q
        qq += w[i] * q * q
    return xq, qq
