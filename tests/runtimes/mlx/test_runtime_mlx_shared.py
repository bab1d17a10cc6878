"""Gemma 4 on mlx: layers that read the keys of others, and what layers get of a token itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import oracle_models
import pytest
import variants
from decoders import RandomWeights, relayered, remixed
from msgspec import UNSET
from msgspec.structs import replace
from variants import nmse, token_ids

from edgepack.bundle.decoder import Decoder, arranged
from edgepack.errors import EngineError
from edgepack_packager import families, reference
from edgepack_packager.checkpoint.weights import blocks
from edgepack_packager.targets import Model
from edgepack_packager.targets import find as find_target

TOKENS = 200
GEMMA4 = families.describe(oracle_models.GEMMA4)


class Packed:
    """A random Gemma 4 in a folder, or one that differs, and the reference's logits."""

    def __init__(self, folder: Path, decoder: Decoder = GEMMA4) -> None:
        self.folder = folder
        self.weights = RandomWeights(decoder, seed=3)
        self.decoder, self.ids = self.weights.decoder, token_ids(self.weights.decoder, TOKENS)
        writer = find_target("mlx").open(folder, Model("tiny", self.decoder, "f32"), "f32")
        for name, start, stop in blocks(self.decoder):
            writer.write(name, start, self.weights.rows(name, start, stop))
        writer.finish()
        self.expected = reference.logits(self.weights, self.ids)

    def start(self, **options: Any) -> Any:
        return variants.start("mlx", self.folder, self.decoder, **options)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Packed:
    return Packed(tmp_path_factory.mktemp("gemma4"))


@pytest.mark.parametrize("chunk", [1, 7, 24, 512])
def test_chunks_see_what_the_whole_sees(packed: Packed, chunk: int) -> None:
    session = packed.start(chunk=chunk)
    assert nmse(session.forward_all(packed.ids), packed.expected) <= 1e-10
    session.close()


def test_what_follows_a_rewind_or_a_snapshot_is_what_it_was(packed: Packed) -> None:
    session, again = packed.start(chunk=16), packed.start(chunk=16)
    session.forward(packed.ids[:120])
    kept = session.rewind(110)
    assert kept == session.length == 110
    again.restore(session.snapshot())
    found = session.forward_all(packed.ids[110:])
    assert nmse(found, packed.expected[110:]) <= 1e-10
    assert np.array_equal(found, again.forward_all(packed.ids[110:]))
    for each in (session, again):
        each.close()


def test_mlx_lm_computes_the_same_model(tmp_path: Path) -> None:
    """It takes the root of the hidden size as the type of the activations has it: in float32 unrounded."""
    from mlx_lm.utils import load_model

    packed = Packed(tmp_path, replace(GEMMA4, embedding_scale=128**0.5))
    with mx.stream(mx.cpu):
        found = np.array(load_model(packed.folder)[0](mx.array([packed.ids]))[0].astype(mx.float32))
    assert nmse(found, packed.expected) <= 1e-9


FAULTS: dict[str, Callable[[Decoder], Decoder]] = {
    "keys of an earlier layer": lambda decoder: remixed(
        decoder, lambda found: replace(found, kv_layer=1) if found.kv_layer == 3 else found
    ),
    "values as they are": lambda decoder: remixed(decoder, lambda found: replace(found, v_norm=UNSET)),
    "no inputs": lambda decoder: relayered(decoder, lambda layer: replace(layer, inputs=UNSET)),
    "no scale": lambda decoder: relayered(decoder, lambda layer: replace(layer, scaled=UNSET)),
    "all pairs": lambda decoder: remixed(
        decoder, lambda found: replace(found, rope=found.rope and replace(found.rope, scaling=None))
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_another_model_is_far_from_it(packed: Packed, fault: str) -> None:
    other = RandomWeights(FAULTS[fault](packed.decoder), seed=3)
    other.tensors |= {name: rows for name, rows in packed.weights.tensors.items() if name in other.tensors}
    session = packed.start(chunk=64)
    assert nmse(session.forward_all(packed.ids), reference.logits(other, packed.ids)) >= 1e-6
    session.close()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_kv_shared_layers", 2),
        ("global_head_dim", 32),
        ("use_double_wide_mlp", False),
        ("hidden_size_per_layer_input", 32),
        ("vocab_size_per_layer_input", 100),
        ("final_logit_softcapping", None),
        ("layer_types", ["full_attention"] * 8),
    ],
)
def test_a_field_that_says_something_else_is_refused(packed: Packed, field: str, value: Any, tmp_path: Path) -> None:
    for file in packed.folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["model_type"] == "gemma4_text"
    (tmp_path / "config.json").write_text(json.dumps(config | {field: value}))
    with pytest.raises(EngineError, match=f"{field} is"):
        variants.start("mlx", tmp_path, packed.decoder)


def one_wide(decoder: Decoder) -> Decoder:
    layers = list(decoder.layers)
    layers[1] = replace(layers[1], mlp=replace(layers[1].mlp, size=300))
    return replace(decoder, **arranged(layers))


OTHERS: dict[str, Callable[[Decoder], Decoder]] = {
    "one wide layer": one_wide,
    "keys of another layer than the last": FAULTS["keys of an earlier layer"],
    "scaled scores": lambda decoder: remixed(decoder, lambda found: replace(found, scale=0.5)),
    "values as they are": FAULTS["values as they are"],
    "values as they are in layers without window": lambda decoder: remixed(
        decoder, lambda found: found if found.window else replace(found, v_norm=UNSET)
    ),
    "layers that are not scaled": FAULTS["no scale"],
}


@pytest.mark.parametrize("name", OTHERS)
def test_what_mlx_lm_would_compute_otherwise_gets_a_type_that_it_refuses(name: str, tmp_path: Path) -> None:
    packed = Packed(tmp_path, OTHERS[name](GEMMA4))
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "edgepack"
    session = packed.start(chunk=64)
    assert nmse(session.forward_all(packed.ids), packed.expected) <= 1e-10
    session.close()
