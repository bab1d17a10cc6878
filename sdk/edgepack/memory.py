"""What a loaded model needs of the memory: the arithmetic behind a plan. Pure: a decoder and numbers go in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgepack.decoder import Decoder
from edgepack.runtime import KvCache

CHUNK = 128
KV_BYTES: Mapping[KvCache, int] = {"f32": 4, "f16": 2}


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a candidate needs, and that the machine has available (None: the system does not say).

    ``overhead`` is what one prefill step works in; the process itself (Python, the engine's code) is not counted.
    """

    weights: int
    kv_cache: int
    overhead: int
    available: int | None

    @property
    def total(self) -> int:
        """Weights, KV cache and overhead together."""
        return self.weights + self.kv_cache + self.overhead

    @property
    def fits(self) -> bool:
        """Whether the total is at most what is available, or the system does not say what is."""
        return self.available is None or self.total <= self.available


def kv_bytes(decoder: Decoder, kv_cache: KvCache, context: int) -> int:
    """Return the bytes of a KV cache that holds ``context`` tokens."""
    return decoder.kv_values_per_token * KV_BYTES[kv_cache] * context


def overhead_bytes(decoder: Decoder, context: int, chunk: int = CHUNK) -> int:
    """Return the bytes that one prefill step of ``chunk`` tokens works in, all in float32.

    Per token of the chunk: four rows of the hidden size (residual, normed, the two block outputs), q, k, v and the
    attention's result, gate, up and their product, and for one layer and all heads the attention scores over the whole
    context and their softmax. Once: two rows of logits (the engine's and the caller's).

    Measured as growth of the resident memory at a full context, total against this module's: llama.cpp 219 of
    229 MiB and ONNX Runtime 200 of 226 MiB (hidden 1024, 16 heads, context 4096).
    """
    row = 4 * decoder.hidden_size + 2 * decoder.q_size + 2 * decoder.kv_size + 3 * decoder.intermediate_size
    return 4 * (chunk * (row + 2 * decoder.n_heads * context) + 2 * decoder.n_vocab)


def human(count: int) -> str:
    """Return bytes as people read them: "512 B", "3.4 KiB", "44.2 MiB", "1.3 GiB"."""
    size = float(count)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} GiB"
