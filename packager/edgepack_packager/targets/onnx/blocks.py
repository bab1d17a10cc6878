"""Block quantisation as MatMulNBits and GatherBlockQuantized read it, the same on every host.

A block of columns has one float32 scale; value = (code - zero point) * scale, where the zero point of a symmetric block
is 2**(bits - 1). Codes of 4 or 2 bits share a byte, the first in its lowest bits. A plain scale is the symmetric
block's signed largest element over -2**(bits - 1), so that this element is represented exactly by code 0, and the
asymmetric block's range over 2**bits - 1; those bytes are onnxruntime's own quantiser's. A searched scale is the best
of some.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import CALIBRATED_BITS, Form
from edgepack_packager.targets.feedback import Feedback, levels
from edgepack_packager.targets.onnx.forms import Blocks

# Blocks that are quantised at once: intermediate arrays stay at a megabyte, whatever the size of the source's rows.
_RUN = 8192

# Where a searched scale may put a block's largest element, in steps from the middle of the codes' range of 2 h: one
# step beyond the plain -h, which clips it, to one and a half short of it, which leaves a code unused.
_POSITIONS = np.array([1, 0.5, 0, -0.5, -1, -1.5], np.float32)

# What part of an asymmetric block's range a search spreads the codes over. More than all of it leaves room for an end
# that the rounding of the zero point would cut off.
_SPREADS = np.array([1.05, 1, 0.95, 0.9, 0.85, 0.8], np.float32)

Codes = NDArray[np.uint8]


def encode(
    rows: Float32, form: Blocks, importance: Float32 | None = None, feedback: Feedback | None = None
) -> tuple[Codes, Float32, Codes]:
    """Return ``quantize``'s codes, scales and zero points, but for rows that lie on a grid, which take its levels.

    With ``feedback`` the codes are those that make good each other's errors.
    """
    codes, scales, zeros = quantize(rows, form, importance)
    if feedback is not None:
        whole = np.repeat(zeros, form.size, axis=1)
        whole[:, : rows.shape[1]] = levels(rows, feedback, scales, -(zeros * scales), form.size, 2**form.bits - 1)
        codes = _packed(whole, form.bits).reshape(codes.shape)
    keep_grids(rows, form, codes, scales, zeros)
    return codes, scales, zeros


def quantize(rows: Float32, form: Blocks, importance: Float32 | None = None) -> tuple[Codes, Float32, Codes]:
    """Quantise rows [n, columns]: codes uint8 [n, blocks, bytes of a block], scales float32 [n, blocks] and zero points
    uint8 [n, blocks].

    ``importance`` is what an error in each column counts where scales are searched, float32 [columns]. A scale is not
    finite where its block is not; the codes of such a block mean nothing.
    """
    from edgepack_packager.targets.onnx import kernels

    n, count = len(rows), form.count(rows.shape[1])
    counts = np.ones(rows.shape[1], np.float32) if importance is None else importance
    alike = bool((counts == 1).all())  # where a text tells columns apart, their weights' sizes tell nothing more
    flat, counts = (np.ascontiguousarray(_filled(x, form)).reshape(-1, form.size) for x in (rows, counts[None]))
    codes = np.empty((len(flat), form.size_bytes), np.uint8)
    scales = np.empty(len(flat), np.float32)
    half, top = np.float32(2 ** (form.bits - 1)), np.float32(2**form.bits - 1)
    zeros = np.full(len(flat), half, np.uint8)
    for start in range(0, len(flat), _RUN):
        run = slice(start, start + _RUN)
        whole = np.empty(flat[run].shape, np.uint8)
        searched = form.searched or (importance is not None and form.bits < CALIBRATED_BITS)
        own = np.roll(counts, -start, axis=0)  # a run may begin within a row
        match searched, form.asymmetric:
            case True, False:
                kernels.search(flat[run], own, -(half + _POSITIONS), -half, alike, whole, scales[run])
            case True, True:
                kernels.search_asymmetric(flat[run], own, _SPREADS, top, alike, whole, scales[run], zeros[run])
            case False, False:
                kernels.plain(flat[run], half, whole, scales[run])
            case _:
                kernels.plain_asymmetric(flat[run], top, whole, scales[run], zeros[run])
        codes[run] = _packed(whole, form.bits)
    return codes.reshape(n, count, -1), scales.reshape(n, count), zeros.reshape(n, count)


def kind(form: Blocks) -> Form:
    """Return the form as the proof knows it."""
    return Form("asymmetric" if form.asymmetric else "signed", form.bits, form.size, "f32")


def keep_grids(rows: Float32, form: Blocks, codes: Codes, scales: Float32, zeros: Codes) -> None:
    """Replace what ``quantize`` made of those rows that lie on a grid by its levels, which it would round away."""
    from edgepack_packager.targets import grids

    if (found := grids.recover(_filled(rows, form), kind(form))) is None:
        return
    scales[found.rows] = found.scales
    if form.asymmetric:
        zeros[found.rows] = found.zeros
    step = max(1, _RUN // scales.shape[1])
    for start in range(0, len(found.rows), step):
        run = slice(start, start + step)
        on = found.rows[run]
        steps = _filled(rows[on], form).reshape(len(on), -1, form.size) - found.biases[run, :, None]
        steps /= np.where(found.scales[run] != 0, found.scales[run], np.float32(1))[:, :, None]
        codes[on] = _packed(np.rint(steps).astype(np.uint8), form.bits)


def dequantize(codes: Codes, scales: Float32, zeros: Codes, columns: int, bits: int) -> Float32:
    """Return the rows that ``codes`` [n, blocks, bytes], ``scales`` and ``zeros`` [n, blocks] stand for: float32
    [n, columns]."""
    from edgepack_packager.targets import unpacking

    values = np.empty((scales.size, codes.shape[2] * 8 // bits), np.float32)
    unpacking.signed(codes.reshape(-1), bits, scales.reshape(-1), zeros.reshape(-1), values)
    return values.reshape(len(codes), -1)[:, :columns]


def pack_zeros(zeros: Codes, bits: int) -> Codes:
    """Return zero points [n, blocks] as they are stored, uint8 [n, bytes]; what fills the last byte is the middle."""
    left = -zeros.shape[1] % (8 // bits)
    return _packed(np.pad(zeros, ((0, 0), (0, left)), constant_values=1 << bits - 1), bits)


def unpack_zeros(packed: Codes, count: int, bits: int) -> Codes:
    """Return the first ``count`` zero points of each row [n, bytes]: uint8 [n, count]."""
    parts = packed[:, :, None] >> np.arange(0, 8, bits, dtype=np.uint8) & np.uint8((1 << bits) - 1)
    return parts.reshape(len(packed), -1)[:, :count]


def bound(form: Blocks) -> float:
    """Return the largest |w' - w| / |w| of a row (L2 norms) that the scheme allows.

    In steps s of a block of n: its largest element has magnitude h = 2**(bits - 1) and no error. Each of the others
    adds e**2 to the squared error and w**2 to the squared norm; the ratio is worst where all of them lie half-way
    between codes 0 and 1 step, e = w = 1/2. (The largest code is h - 1, so that an element near +h is clipped by up
    to a whole step, but it also adds h**2 to the norm: a smaller ratio.) Hence sqrt((n-1)/4 / (h**2 + (n-1)/4)): 0.329
    for 4 bits in blocks of 32, 0.444 in 64, 0.0217 and 0.031 for 8. float32 arithmetic moves a half by at most 2**-16.
    A search tries the plain scale too, and so is never worse.

    Of an asymmetric block the ends are 2**bits - 1 steps apart, so that their squares add up to half of its square at
    least; they too, as all others, may lie half-way between two codes.
    """
    if form.asymmetric:
        error = form.size * (0.5 + 2.0**-14) ** 2
        return math.sqrt(error / ((2**form.bits - 1) ** 2 / 2 + (form.size - 2) / 4))
    half = 2 ** (form.bits - 1)
    error = (form.size - 1) * (0.5 + 2.0**-14) ** 2
    return math.sqrt(error / (half**2 + error))


def _filled(rows: Float32, form: Blocks) -> Float32:
    """Rows whose last block is filled up with zeros."""
    return np.pad(rows, ((0, 0), (0, -rows.shape[1] % form.size))) if rows.shape[1] % form.size else rows


def _packed(whole: Codes, bits: int) -> Codes:
    if bits == 8:
        return whole
    # A byte's codes in one number, a byte each: all but the first move down to where the byte has them.
    codes = np.ascontiguousarray(whole).view(f"<u{8 // bits}")
    joined = codes.copy()
    for index in range(1, 8 // bits):
        joined |= codes >> np.array(index * (8 - bits), codes.dtype)
    packed: Codes = joined.astype(np.uint8)
    return packed
