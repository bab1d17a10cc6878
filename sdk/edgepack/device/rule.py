"""Which variant is faster on a CPU where nobody measured it: the order that the tables of docs/benchmarks.md have.

A prediction stands before it, and a measurement before both. But on a busy machine, and where nothing can be
remembered, there is neither.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgepack.bundle.decoder import Decoder
    from edgepack.bundle.manifest import Variant
    from edgepack.device.engine import Support

_HALVES = 12.0
"""Bits a weight from which on a variant is of 16 bits or 32: in each step it reads twice what quantised ones read."""


def place_on_cpu(variant: Variant, decoder: Decoder, support: Support | None) -> int:
    """Return a variant's place: the lowest first, those of one place by their bits.

    llama.cpp comes before ONNX Runtime where it was compiled for the processor and most weights are what their scheme
    says; else after it: a wheel's engine lacks the processor's newer instructions, and the types that take the place of
    K-quants, in matrices whose rows are no multiple of 256, are slower. What is not here might be as fast as can be.
    """
    if variant.runtime == "gguf":
        compiled = support is None or support.better is None
        place = 0 if compiled and _as_said(variant, decoder) else 2
    else:
        place = 1 if variant.runtime == "onnx" else 3
    return place + 4 * (variant.quantization.bits > _HALVES)


def _as_said(variant: Variant, decoder: Decoder) -> bool:
    """Whether most weights have the type of the variant's scheme."""
    sizes = {name: math.prod(shape) for name, shape in decoder.tensors()}
    others = {fallback.tensor for fallback in variant.quantization.fallbacks}
    return 2 * sum(size for name, size in sizes.items() if name in others) <= sum(sizes.values())
