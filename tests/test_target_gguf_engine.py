"""What the GGUF target writes is the same model: llama.cpp computes from it what the reference computes."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import describe
from numpy.typing import NDArray

from edgepack import runtime
from edgepack.decoder import Decoder, LinearScaling, Llama3Scaling, Rope
from edgepack.errors import EngineMissingError
from edgepack.runtime import Options
from edgepack_packager import reference
from edgepack_packager.targets import Model
from edgepack_packager.targets.gguf import GgufTarget
from edgepack_packager.weights import blocks

Array = NDArray[np.float32]

LLAMA3 = Llama3Scaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=32)
LINEAR = LinearScaling(factor=4.0)
BIASES = {"qkv_bias": True, "output_bias": True, "mlp_bias": True}

MODELS: dict[str, dict[str, Any]] = {
    "tied": {},
    "biases, untied, llama3 rope": BIASES | {"tied": False, "rope": Rope(theta=500000.0, dim=16, scaling=LLAMA3)},
    "linear rope": {"rope": Rope(theta=10000.0, dim=16, scaling=LINEAR)},
    "wide heads": {"head_dim": 32, "rope": Rope(theta=10000.0, dim=32), "tied": False},
    "one key head": {"n_kv_heads": 1, "norm_eps": 1e-3},
}


class RandomWeights:
    """Seeded weights, large enough that every block of the model is heard in the logits."""

    dtype = "f32"

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self._shapes = dict(decoder.tensors())

    def rows(self, name: str, start: int, stop: int) -> Array:
        shape = self._shapes[name]
        values = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, np.float32)
        if len(shape) == 2:
            return values[start:stop] / np.float32(np.sqrt(shape[1]))
        return values[start:stop] * np.float32(0.2) + np.float32(name.endswith("norm"))


def make(changes: dict[str, Any]) -> Decoder:
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
        "context": 128,
        "norm_eps": 1e-5,
        "rope": Rope(theta=10000.0, dim=16),
        "tied": True,
    }
    return describe(**facts | changes)


@pytest.mark.parametrize("name", MODELS)
def test_f32_is_the_reference(name: str, tmp_path: Path) -> None:
    decoder = make(MODELS[name])
    weights = RandomWeights(decoder)
    writer = GgufTarget().open(tmp_path, Model(name, decoder, "f32"), "f32")
    for tensor, start, stop in blocks(decoder):
        writer.write(tensor, start, weights.rows(tensor, start, stop))
    writer.finish()
    ids = np.random.default_rng(3).integers(0, decoder.n_vocab, 100).tolist()
    expected = reference.logits(weights, ids)
    try:
        session = runtime.find("gguf").open(tmp_path, decoder, Options(context=128, threads=1, kv_cache="f32"))
    except EngineMissingError as error:
        pytest.skip(str(error))
    actual = session.forward_all(ids)
    session.close()
    assert np.square(actual - expected).sum() / np.square(expected).sum() <= 1e-10
