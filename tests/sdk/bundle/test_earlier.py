"""Manifests of schema 1, as bundles in the field have them."""

from __future__ import annotations

import json
from typing import Any

import pytest
import small_bundle

from edgepack.bundle.decoder import Attention, Layer, Mlp
from edgepack.bundle.manifest import VERSION, decode, encode
from edgepack.bundle.rope import LinearScaling, Rope
from edgepack.errors import BundleDamagedError

NEAR, FAR = {"theta": 1e4, "dim": 16}, {"theta": 1e6, "dim": 16, "scaling": {"type": "linear", "factor": 8.0}}
GEMMA: dict[str, Any] = {
    "family": "gemma3",
    "architecture": "Gemma3ForCausalLM",
    "n_layers": 8,
    "hidden_size": 64,
    "n_heads": 4,
    "n_kv_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "n_vocab": 260,
    "context": 8192,
    "trained_context": 8192,
    "norm_eps": 1e-6,
    "pattern": [*[{"rope": NEAR, "window": 512}] * 5, {"rope": FAR, "window": None}],
    "tied": True,
    "activation": "gelu_tanh",
    "qk_norm": True,
    "post_norms": True,
    "embedding_scale": 8.0,
    "attention_scale": 0.2,
    "wide": True,
}


def old(**changes: object) -> bytes:
    document = small_bundle.manifest([])
    return json.dumps(document | {"schema": {"version": 1, "features": []}, "decoder": GEMMA | changes}).encode()


def test_a_bundle_of_schema_1_opens_and_says_the_same() -> None:
    manifest = decode(old())
    decoder, mlp = manifest.decoder, Mlp(size=128, activation="gelu_tanh")
    near, far = (
        Layer(
            mixer=Attention(n_heads=4, n_kv_heads=2, head_dim=16, rope=rope, window=window, scale=0.2, qk_norm="head"),
            mlp=mlp,
            norms="both",
        )
        for rope, window in ((Rope(1e4, 16), 512), (Rope(1e6, 16, LinearScaling(8.0)), None))
    )
    assert decoder.layers == (near,) * 5 + (far,) + (near,) * 2
    assert (decoder.embedding_scale, decoder.wide, decoder.tied, decoder.norm_eps) == (8.0, True, True, 1e-6)
    assert manifest.schema.version == VERSION
    assert decode(encode(manifest)) == manifest


@pytest.mark.parametrize("changes", [{"n_kv_heads": 3}, {"n_heads": "4"}, {"kinds": []}, {"pattern": []}])
def test_what_schema_1_does_not_allow_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(BundleDamagedError, match="decoder"):
        decode(old(**changes))
