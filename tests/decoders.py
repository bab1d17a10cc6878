"""Decoders and random weights in memory, for tests that need no checkpoint."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np

from edgepack.bundle.decoder import Attention, Decoder, Rope
from edgepack_packager.checkpoint.weights import Float32


def describe(**fields: Any) -> Decoder:
    """Return a small Llama with some fields changed; ``rope`` stands for a pattern of one attention without window."""
    rope = fields.pop("rope", None)
    facts: dict[str, Any] = {
        "family": "llama",
        "architecture": "LlamaForCausalLM",
        "n_layers": 2,
        "hidden_size": 64,
        "n_heads": 4,
        "n_kv_heads": 2,
        "head_dim": 16,
        "intermediate_size": 96,
        "n_vocab": 128,
        "context": 512,
        "norm_eps": 1e-5,
        "tied": True,
        **fields,
    }
    facts.setdefault("pattern", (Attention(rope or Rope(theta=10000.0, dim=facts["head_dim"])),))
    facts.setdefault("trained_context", facts["context"])
    return Decoder(**facts)


class RandomWeights:
    """``Weights`` whose every block is audible in the logits; the same seed gives the same values on every host.

    ``gain`` scales the deviation of all matrices.
    """

    def __init__(self, decoder: Decoder, seed: int = 0, dtype: str = "f32", gain: float = 1.0) -> None:
        self.decoder, self.dtype = decoder, dtype
        self.tensors = {name: _draw(decoder, name, shape, seed, gain) for name, shape in decoder.tensors()}

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a tensor: float32."""
        return self.tensors[name][start:stop]


def _draw(decoder: Decoder, name: str, shape: tuple[int, ...], seed: int, gain: float) -> Float32:
    normal = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(shape, dtype=np.float32)
    if name.endswith("norm"):
        return 1 + np.float32(0.2) * normal
    if name.endswith(".bias"):
        return np.float32(0.5) * normal
    if name == "embedding" and not decoder.tied:
        return normal
    # Logits get a deviation of 3; the scores of attention one of 2; a block's output is as large as the stream.
    wide = 3.0 if name in ("embedding", "head") else 1.4 if name.endswith((".q", ".k")) else 1.2
    return np.float32(gain * wide / np.sqrt(shape[1])) * normal
