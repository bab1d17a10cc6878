"""Payloads for onnxruntime with a KV cache of 8 bits: what they keep is what the rule says, wherever it is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decoders import RandomWeights, describe
from gguf_decoders import GEMMA2, GEMMA3, rope
from levels import logits_with_levels_of
from variants import nmse, token_ids

from edgepack.bundle.decoder import Decoder
from edgepack.errors import BuildError, EngineError
from edgepack.runtime import Options, Session, find
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets import Model, Request
from edgepack_packager.targets.onnx import OnnxTarget
from edgepack_packager.write import write

TARGET = OnnxTarget().with_kv_cache("q8")
CONTEXT = 96
DECODERS: dict[str, Decoder] = {
    "llama": describe(),
    "rotated outside": describe(head_dim=24, rope=rope(dim=24)),
    "windows, softcap": describe(**GEMMA2),
    "windows, norms of q and k": describe(**GEMMA3),
}
Open = Callable[..., Session]
Scales = Mapping[str, Float32]


@pytest.fixture(scope="module", params=DECODERS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return DECODERS[request.param]


@pytest.fixture(scope="module")
def ids(decoder: Decoder) -> list[int]:
    return [int(token) for token in np.random.default_rng(6).integers(0, decoder.n_vocab, 90)]


@pytest.fixture(scope="module")
def scales(decoder: Decoder, ids: list[int]) -> Scales:
    return reference.cache_scales(RandomWeights(decoder), ids)


@pytest.fixture(scope="module")
def folder(decoder: Decoder, scales: Scales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out, weights = tmp_path_factory.mktemp("q8"), RandomWeights(decoder)
    model = Model("tiny", decoder, "f32", cache_scales=scales)
    write(weights, [Request(TARGET, "f32", "f32"), Request(TARGET, "q4", "int4")], out, model)
    return out


def opened(folder: Path, decoder: Decoder, **changes: Any) -> Any:
    options: dict[str, Any] = {"context": CONTEXT, "threads": 1, "kv_cache": "q8", "chunk": 16} | changes
    return find("onnx").open(folder / "onnx-f32-kv8", decoder, Options(**options))


def test_the_engine_keeps_what_the_rule_says(folder: Path, decoder: Decoder, ids: list[int], scales: Scales) -> None:
    weights, reader = RandomWeights(decoder), TARGET.read(folder / "onnx-f32-kv8", decoder)
    rule = reader.cache("q8")
    reader.close()
    assert rule
    session = opened(folder, decoder)
    found = session.forward_all(ids)
    assert nmse(found, logits_with_levels_of(session, weights, ids, rule, scales)) <= 1e-10
    assert 1e-7 < nmse(found, reference.logits(weights, ids)) < 1e-3
    session.rewind(40)
    state = session.snapshot()
    steps = np.stack([session.forward([token]) for token in ids[40:50]])
    assert nmse(steps, logits_with_levels_of(session, weights, ids[:50], rule, scales)[40:]) <= 1e-10
    session.restore(state)
    assert np.array_equal(steps, np.stack([session.forward([token]) for token in ids[40:50]]))
    session.close()


def test_the_cache_takes_a_quarter(folder: Path, decoder: Decoder, ids: list[int]) -> None:
    session = opened(folder, decoder)
    session.forward(ids)
    assert 0 <= len(session.snapshot()) - 90 * decoder.kv_values_per_token < 1000
    session.close()


def test_a_payload_without_it_is_refused_and_so_is_another_type(folder: Path, decoder: Decoder) -> None:
    with pytest.raises(EngineError, match="no KV cache of f32"):
        opened(folder, decoder, kv_cache="f32")


@pytest.mark.parametrize(("variant", "kv_cache"), [("onnx-f32-kv8", "f32"), ("onnx-f32", "q8")])
def test_a_graph_and_a_cache_of_different_widths_never_meet(variant: str, kv_cache: Any, tmp_path: Path) -> None:
    # The engine would read four bytes where one is, or write one where four are.
    import onnx

    decoder, weights = describe(), RandomWeights(describe())
    scales = reference.cache_scales(weights, token_ids(decoder, 20))
    requests = [Request(TARGET, "f32", "f32"), Request(OnnxTarget(), "f32", "f32")]
    write(weights, requests, tmp_path, Model("tiny", decoder, "f32", cache_scales=scales))
    path = tmp_path / variant / "model.onnx"
    graph = onnx.load(str(path), load_external_data=False)
    for value in (*graph.graph.input, *graph.graph.output):
        if value.name.startswith(("past", "present")):
            value.type.tensor_type.elem_type = {"f32": onnx.TensorProto.FLOAT, "q8": onnx.TensorProto.INT8}[kv_cache]
    path.write_bytes(graph.SerializeToString())
    options = Options(context=CONTEXT, threads=1, kv_cache=kv_cache)
    with pytest.raises(EngineError, match=f"has no KV cache of {kv_cache}"):
        find("onnx").open(path.parent, decoder, options)


def test_a_key_is_measured_by_its_pair(decoder: Decoder, ids: list[int]) -> None:
    # The same ids later turn each pair elsewhere: nothing of a key then exceeds the scales of the first positions.
    weights = RandomWeights(decoder)
    scales = reference.cache_scales(weights, ids[:30])
    largest: dict[int, float] = {}

    def watch(layer: int, part: str, x: Any) -> Any:
        if part == "k" and layer == 0:
            largest[layer] = float((np.abs(x) / scales["layers.0.attention.k"]).max())
        return x

    reference.logits(weights, [ids[i % 30] for i in range(90)], cache=watch)
    assert largest[0] <= 127


def test_a_model_that_nobody_measured_is_refused(tmp_path: Path) -> None:
    decoder = describe()
    with pytest.raises(BuildError, match="has no scales for its KV cache of q8"):
        write(RandomWeights(decoder), [Request(TARGET, "f32", "f32")], tmp_path, Model("tiny", decoder, "f32"))
