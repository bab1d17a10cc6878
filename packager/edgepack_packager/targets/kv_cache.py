"""What an attention makes of its numbers for the sake of its KV cache: each rule of rounding in a few lines of numpy.

Two engines that both keep 8 bits keep other ones: ggml has blocks with a scale of their own, onnxruntime one scale for
each channel, fixed when the payload is built.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgepack_packager.checkpoint.weights import Float32

Part = Literal["q", "k", "v", "mixed"]
Cache = Callable[[int, Part, Float32], Float32]
"""What a layer's attention makes of q, k, v and of its result ("mixed"): float32 [positions, heads, head dimension]."""

Q8_0 = 32
"""Neighbours that share a scale in ggml's q8_0."""


def half(layer: int, part: Part, x: Float32) -> Float32:
    """Attention in f16: each of its numbers is rounded to it."""
    with np.errstate(over="ignore"):
        return x.astype(np.float16).astype(np.float32)


def blocks(layer: int, part: Part, x: Float32) -> Float32:
    """llama.cpp's cache of q8_0: keys and values in blocks of it, and queries too, whose products with keys are of
    integers.

    Heads of whole 64s are turned by a Walsh-Hadamard matrix before, and what comes out of the values is turned back,
    so that an outlier is shared by its neighbours: the largest such matrix that divides a head for q and k, one of 64
    for v (llama_kv_cache::build_input_k_rot and build_input_v_rot of the bound versions). A GGUF file of Llama has the
    values of a head in another order, so that others share a scale there: what it costs is the same, each number not.
    """
    if part == "mixed":
        return x
    head = x.shape[-1]
    if head % 64:
        return _q8_0(x)
    size = 64 if part == "v" else head & -head
    turn = _hadamard(size)
    turned = _q8_0(np.matmul(x.reshape(-1, size), turn))
    back: Float32 = np.matmul(turned, turn)
    return back.reshape(x.shape)


def channels(scales: Mapping[str, Float32]) -> Cache:
    """onnxruntime's cache of int8: keys and values in whole multiples of a scale for each channel, by
    ``layers.0.attention.k``: float32 [heads, head dimension]."""

    def kept(layer: int, part: Part, x: Float32) -> Float32:
        scale = scales.get(f"layers.{layer}.attention.{part}")
        return x if scale is None else np.clip(np.rint(x / scale), -128, 127) * scale

    return kept


def _q8_0(x: Float32) -> Float32:
    """The largest magnitude over 127 is a block's scale, in f16 (quantize_row_q8_0_ref of ggml-quants.c)."""
    rows = x.reshape(-1, Q8_0)
    scales = np.abs(rows).max(axis=-1, keepdims=True) / np.float32(127)
    codes = np.rint(np.divide(rows, scales, out=np.zeros_like(rows), where=scales > 0))
    kept: Float32 = codes * scales.astype(np.float16).astype(np.float32)
    return kept.reshape(x.shape)


def _hadamard(size: int) -> NDArray[np.float32]:
    """The orthonormal Walsh-Hadamard matrix [size, size], its own inverse; ``size`` is a power of two."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    result: NDArray[np.float32] = matrix / np.float32(np.sqrt(size))
    return result
