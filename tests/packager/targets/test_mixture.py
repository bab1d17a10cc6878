"""What a mixture gives more bits follows from the shape of the model, and costs a large one little."""

from __future__ import annotations

from typing import Any

import pytest
from decoders import describe

from edgepack.bundle.decoder import Decoder
from edgepack_packager import targets
from edgepack_packager.targets.mixture import SMALL, next_sensitive, sensitive

# hidden, intermediate, layers, heads, key and value heads, vocabulary, tied
SHAPES: dict[str, tuple[int, int, int, int, int, int, bool]] = {
    "SmolLM2-135M": (576, 1536, 30, 9, 3, 49152, True),
    "Llama-3.2-1B": (2048, 8192, 16, 32, 8, 128256, True),
    "Llama-3.2-3B": (3072, 8192, 28, 24, 8, 128256, True),
    "Phi-3.5-mini": (3072, 8192, 32, 32, 32, 32064, False),
    "Llama-3.1-8B": (4096, 14336, 32, 32, 8, 128256, False),
}


def decoder(name: str, **changes: Any) -> Decoder:
    hidden, inner, layers, heads, kv_heads, vocabulary, tied = SHAPES[name]
    head = 64 if name == "SmolLM2-135M" else hidden // heads
    fields = {"hidden_size": hidden, "intermediate_size": inner, "n_layers": layers, "n_heads": heads, "head_dim": head}
    rest = {"n_kv_heads": kv_heads, "n_vocab": vocabulary, "tied": tied, "context": 4096}
    return describe(**{**fields, **rest, **changes})


def test_a_small_model_gets_more_bits_where_it_loses_most() -> None:
    found = sensitive(decoder("SmolLM2-135M", n_layers=4))
    values = {f"layers.{layer}.attention.v" for layer in range(4)}
    last = {f"layers.3.{part}" for part in ("attention.q", "attention.k", "attention.o", "mlp.gate", "mlp.up")}
    assert found == {"embedding", *values, *last, "layers.2.mlp.down", "layers.3.mlp.down"}
    keys, downs = ({f"layers.{layer}.{part}" for layer in range(3)} for part in ("attention.k", "mlp.down"))
    assert next_sensitive(decoder("SmolLM2-135M", n_layers=4)) == (keys | downs) - found
    assert "head" in sensitive(decoder("SmolLM2-135M", tied=False))


def test_a_large_model_gets_more_bits_in_its_head_and_in_values_that_heads_share() -> None:
    values = {f"layers.{layer}.attention.v" for layer in range(32)}
    assert sensitive(decoder("Llama-3.1-8B")) == {"head"} | values
    assert sensitive(decoder("Phi-3.5-mini")) == {"head"}
    assert "embedding" in sensitive(decoder("Llama-3.2-1B"))
    assert next_sensitive(decoder("Llama-3.2-1B")) == frozenset()
    assert decoder("SmolLM2-135M").n_parameters < SMALL <= decoder("Llama-3.2-1B").n_parameters


@pytest.mark.parametrize("name", ["Llama-3.2-3B", "Phi-3.5-mini", "Llama-3.1-8B"])
@pytest.mark.parametrize(("target", "mixed", "plain"), [("onnx", "int4_mixed", "int4"), ("mlx", "4bit_mixed", "4bit")])
def test_a_mixture_costs_a_large_model_little(name: str, target: str, mixed: str, plain: str) -> None:
    sizes = [targets.find(target).measure(decoder(name), "bf16", scheme).tensor_bytes for scheme in (mixed, plain)]
    assert sizes[0] <= 1.08 * sizes[1]


@pytest.mark.parametrize(("target", "scheme", "most"), [("onnx", "int4_mixed", 97.5), ("mlx", "4bit_mixed", 92)])
def test_a_small_model_stays_a_small_file(target: str, scheme: str, most: float) -> None:
    assert targets.find(target).measure(decoder("SmolLM2-135M"), "bf16", scheme).tensor_bytes <= most * 1e6
