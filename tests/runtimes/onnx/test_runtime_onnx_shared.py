"""Layers that read the keys of others and get a part of the token itself: exact in onnxruntime, and audible when wrong.

The second model has what the first has not: rows that end in a part of a block, and heads that are rotated before the
operator.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import variants
from decoders import relayered, remixed
from levels import logits_with_levels_of
from models import make_model
from msgspec import UNSET
from msgspec.structs import replace
from onnx import helper
from oracle_models import GEMMA4, ORACLE_MODELS
from variants import nmse, token_ids

from edgepack.bundle.decoder import Decoder
from edgepack.device.memory import kv_bytes
from edgepack.errors import EngineError
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import Float32, Weights, blocks
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.targets import Model, Request, kv_cache
from edgepack_packager.targets.onnx import OnnxTarget
from edgepack_packager.write import write
from edgepack_runtimes.onnx import session as sessions
from edgepack_runtimes.onnx.check import check

# Longer than any window here, and not a multiple of one.
POSITIONS = 300
IDS = [int(token) for token in np.random.default_rng(3).integers(0, 384, POSITIONS)]

ODD: dict[str, Any] = {
    **GEMMA4,
    "num_hidden_layers": 5,
    "head_dim": 24,
    "global_head_dim": 40,
    "hidden_size_per_layer_input": 36,
    "layer_types": [f"{kind}_attention" for kind in ("sliding", "full", "sliding", "sliding", "full")],
    "num_kv_shared_layers": 2,
    "tie_word_embeddings": False,
}
MODELS: dict[str, Callable[[Path], Path]] = {
    "gemma4": ORACLE_MODELS["gemma4"].make,
    "odd sizes": partial(make_model, fields=ODD, seed=3),
}
BLOCKS = ("int8", "int4", "int4_mixed")
ASYMMETRIC = "int4_b64_asym"
HALF, BYTES = (OnnxTarget().with_kv_cache(kind) for kind in ("f16", "q8"))
Scales = Mapping[str, Float32]
start = partial(variants.start, "onnx", context=320)


@pytest.fixture(scope="module", params=MODELS)
def weights(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    with open_checkpoint(MODELS[request.param](tmp_path_factory.mktemp("source"))) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.fixture(scope="module")
def gemma4(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Weights]:
    with open_checkpoint(MODELS["gemma4"](tmp_path_factory.mktemp("source"))) as checkpoint:
        yield families.open_model(checkpoint)


@pytest.fixture(scope="module")
def expected(weights: Weights) -> Float32:
    return reference.logits(weights, IDS)


@pytest.fixture(scope="module")
def scales(weights: Weights) -> Scales:
    return reference.cache_scales(weights, IDS[:90])


@pytest.fixture(scope="module")
def folder(weights: Weights, scales: Scales, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant in f32 for each type of KV cache, and those of blocks."""
    out = tmp_path_factory.mktemp("variants")
    model = Model("tiny", weights.decoder, "f32", cache_scales=scales)
    requests = [Request(target, "f32", "f32") for target in (OnnxTarget(), HALF, BYTES)]
    write(weights, [*requests, *(Request(OnnxTarget(), each, each) for each in (*BLOCKS, ASYMMETRIC))], out, model)
    return out


def stepped(session: Any, ids: list[int]) -> Float32:
    return np.stack([session.forward([token]) for token in ids])


# The same model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [512, 64, 7])
def test_f32_is_the_reference_in_any_chunks(folder: Path, weights: Weights, expected: Float32, chunk: int) -> None:
    session = start(folder / "onnx-f32", weights.decoder, chunk=chunk)
    assert nmse(session.forward_all(IDS), expected) <= 1e-10
    session.close()


def test_so_it_is_token_by_token_and_after_a_rewind(folder: Path, weights: Weights, expected: Float32) -> None:
    session = start(folder / "onnx-f32", weights.decoder, chunk=40)
    assert nmse(stepped(session, IDS), expected) <= 1e-10
    for kept in (0, 20, 24, 25, 150, 290):
        session.rewind(0)
        session.forward([*IDS[:kept], *[7] * (POSITIONS - kept)])
        session.rewind(kept)
        assert nmse(session.forward_all(IDS[kept:]), expected[kept:]) <= 1e-10
    session.close()


def test_a_snapshot_has_the_keys_of_the_layers_that_keep_some(
    folder: Path, weights: Weights, expected: Float32
) -> None:
    session, other = (start(folder / "onnx-f32", weights.decoder) for _ in range(2))
    empty = len(session.snapshot())
    session.forward(IDS[:200])
    state = session.snapshot()
    kept = sum(2 * 4 * each.kv_size for each in weights.decoder.attentions if each.owns)
    assert 0 <= len(state) - empty - 200 * kept < 8
    assert kv_bytes(weights.decoder, "onnx", "f32", 200) == 200 * kept
    other.restore(state)
    assert nmse(other.forward_all(IDS[200:]), expected[200:]) <= 1e-10
    session.close()
    other.close()


@pytest.mark.parametrize("chunk", [512, 16])
def test_a_cache_of_f16_is_what_rounding_in_the_attention_gives(
    folder: Path, weights: Weights, expected: Float32, chunk: int
) -> None:
    """But for what lies between two numbers of 16 bits, where the order of a sum decides."""
    rounded = reference.logits(weights, IDS, cache=kv_cache.half)
    session = start(folder / "onnx-f32-kv16", weights.decoder, kv_cache="f16", chunk=chunk)
    found = session.forward_all(IDS)
    assert nmse(found, rounded) < nmse(found, expected) / 2
    session.rewind(100)
    assert nmse(stepped(session, IDS[100:200]), rounded[100:200]) < nmse(found, expected) / 2
    session.close()


@pytest.mark.parametrize("chunk", [512, 16])
def test_a_cache_of_q8_keeps_what_the_rule_says(folder: Path, weights: Weights, scales: Scales, chunk: int) -> None:
    reader = BYTES.read(folder / "onnx-f32-kv8", weights.decoder)
    rule = reader.cache("q8")
    reader.close()
    assert rule
    session = start(folder / "onnx-f32-kv8", weights.decoder, kv_cache="q8", chunk=chunk)
    found = session.forward_all(IDS[:90])
    assert nmse(found, logits_with_levels_of(session, weights, IDS[:90], rule, scales)) <= 1e-10
    session.rewind(40)
    steps = stepped(session, IDS[40:90])
    assert nmse(steps, logits_with_levels_of(session, weights, IDS[:90], rule, scales)[40:]) <= 1e-10
    session.close()


@pytest.mark.parametrize("scheme", BLOCKS)
def test_a_quantised_graph_computes_with_the_numbers_that_were_written(
    folder: Path, weights: Weights, scheme: str, tmp_path: Path
) -> None:
    """Exactly so but for the engine's own rounding of activations."""
    decoder, variant = weights.decoder, shutil.copytree(folder / f"onnx-{scheme}", tmp_path / "variant")
    ids = token_ids(decoder, 100)
    reader = OnnxTarget().read(variant, decoder)
    for name, shape in decoder.tensors():
        found, exact = (each.rows(name, 0, shape[0]).reshape(shape[0], -1) for each in (reader, weights))
        errors = np.linalg.norm(found - exact, axis=1)
        assert (errors <= reader.bound(name) * np.linalg.norm(exact, axis=1)).all(), name
    expected = reference.logits(ReadBack(decoder, reader), ids)
    reader.close()

    def run() -> float:
        session = start(variant, decoder)
        found = session.forward_all(ids)
        session.close()
        return nmse(found, expected)

    assert 1e-10 < run() < 2e-2

    def take_activations_as_they_are(model: onnx.ModelProto) -> None:
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name == "accuracy_level":
                    attribute.i = 1

    change(variant, take_activations_as_they_are)
    assert run() <= 1e-10


def test_a_graph_with_zero_points_is_the_decoders(folder: Path, weights: Weights) -> None:
    check(folder / f"onnx-{ASYMMETRIC}", weights.decoder)


# Graphs of another description ---------------------------------------------------------------------------------------


def another_source(source: int, other: int) -> Callable[[Decoder], Decoder]:
    return lambda decoder: remixed(
        decoder, lambda found: replace(found, kv_layer=other) if found.kv_layer == source else found
    )


FAULTS: dict[str, Callable[[Decoder], Decoder]] = {
    "keys of another layer with the window": another_source(3, 1),
    "keys of another layer without": another_source(4, 2),
    "values as they are": lambda decoder: remixed(decoder, lambda found: replace(found, v_norm=UNSET)),
    "all pairs turned": lambda decoder: remixed(
        decoder, lambda found: replace(found, rope=found.rope and replace(found.rope, scaling=None))
    ),
    "a window of one more": lambda decoder: remixed(
        decoder, lambda found: replace(found, window=found.window and found.window + 1)
    ),
    "no inputs": lambda decoder: relayered(decoder, lambda layer: replace(layer, inputs=UNSET)),
    "no scale": lambda decoder: relayered(decoder, lambda layer: replace(layer, scaled=UNSET)),
    "another activation": lambda decoder: relayered(
        decoder, lambda layer: replace(layer, mlp=replace(layer.mlp, activation="silu"))
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_graph_of_another_description_is_far_from_the_reference(gemma4: Weights, fault: str, tmp_path: Path) -> None:
    written = FAULTS[fault](gemma4.decoder)
    assert written != gemma4.decoder
    writer = OnnxTarget().open(tmp_path, Model("tiny", written, "f32"), "f32")
    for name, first, end in blocks(written):
        writer.write(name, first, gemma4.rows(name, first, end))
    writer.finish()
    session = start(tmp_path, written)
    found = session.forward_all(IDS)
    session.close()
    assert nmse(found, reference.logits(gemma4, IDS)) > 1e-6


# Files that are not what they should be ------------------------------------------------------------------------------


def change(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def node(model: onnx.ModelProto, output: str) -> Any:
    return next(node for node in model.graph.node if node.output[0] == output)


def bypass(model: onnx.ModelProto, output: str, source: str) -> None:
    """Take out the operator of an output, and let what read it read its source."""
    model.graph.node.remove(node(model, output))
    for each in model.graph.node:
        for index, name in enumerate(each.input):
            each.input[index] = source if name == output else name


def read_another_layer(model: onnx.ModelProto) -> None:
    node(model, "layers.5.attention.output").input[3:5] = ["present.1.key", "present.1.value"]


def read_the_keys_as_values(model: onnx.ModelProto) -> None:
    node(model, "layers.5.attention.output").input[4] = "present.3.key"


def drop_a_scale(model: onnx.ModelProto) -> None:
    bypass(model, "layers.3.scaled", "layers.3.residual")


def scale_by_another(model: onnx.ModelProto) -> None:
    node(model, "layers.3.scaled").input[1] = "layers.4.scale.weight"


def swap_parts(model: onnx.ModelProto) -> None:
    outputs = node(model, "layers.0.inputs").output
    outputs[2], outputs[5] = outputs[5], outputs[2]


def add_rows_as_they_are(model: onnx.ModelProto) -> None:
    bypass(model, "inputs.embedding.scaled", "inputs.embedding.rows")


def drop_the_norm_of_values(model: onnx.ModelProto) -> None:
    node(model, "layers.2.attention.output").input[2] = "layers.2.attention.v.output"


def gather_without_the_token(model: onnx.ModelProto) -> None:
    node(model, "inputs.sum").input[1] = node(model, "inputs.sum").input[0]


def leave_the_stream_out(model: onnx.ModelProto) -> None:
    node(model, "layers.1.inputs.residual").input[1] = node(model, "layers.1.inputs.residual").input[0]


FORGED = {
    read_another_layer: "the operator of layers.5.attention.output",
    read_the_keys_as_values: "the operator of layers.5.attention.output",
    drop_a_scale: "the operator of layers.3.scaled",
    scale_by_another: "the operator of layers.3.scaled",
    swap_parts: "the operator of layers.0.inputs",
    add_rows_as_they_are: "the operator of inputs.embedding.scaled",
    drop_the_norm_of_values: "the operator of layers.2.attention.output",
    gather_without_the_token: "the operator of inputs.sum",
    leave_the_stream_out: "the operator of layers.1.inputs.residual",
}


@pytest.fixture(scope="module")
def variant(gemma4: Weights, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("forged")
    write(gemma4, [Request(OnnxTarget(), "f32", "f32")], out, Model("tiny", gemma4.decoder, "f32"))
    return out / "onnx-f32"


@pytest.mark.parametrize("edit", FORGED, ids=lambda edit: edit.__name__)
def test_a_forged_part_is_refused_and_would_be_heard(
    variant: Path, gemma4: Weights, edit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = shutil.copytree(variant, tmp_path / "copy")
    check(copy, gemma4.decoder)
    change(copy, edit)
    with pytest.raises(EngineError, match=f"is not the graph of this decoder: {FORGED[edit]} differs"):
        start(copy, gemma4.decoder)
    monkeypatch.setattr(sessions, "check", lambda *_: None)
    session = start(copy, gemma4.decoder)
    found = session.forward_all(IDS)
    session.close()
    assert nmse(found, reference.logits(gemma4, IDS)) > 1e-6


def norm_by_another_gain(model: onnx.ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "unit").float_data[0] = 2.0


def give_keys_of_a_position(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "nothing.64")
    tensor.CopyFrom(helper.make_tensor("nothing.64", onnx.TensorProto.FLOAT, [1, 1, 2], [1.0, 2.0]))


def make_room_for_many(model: onnx.ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "nothing.64").dims[1] = 2**40


def expand_to_many(model: onnx.ModelProto) -> None:
    next(tensor for tensor in model.graph.initializer if tensor.name == "ones.32.shape").int64_data[0] = 2**40


def write_into_the_other_layers_cache(model: onnx.ModelProto) -> None:
    node(model, "layers.5.attention.output").output.extend(["more.key", "more.value"])


@pytest.mark.parametrize(
    "edit",
    [
        norm_by_another_gain,
        give_keys_of_a_position,
        make_room_for_many,
        expand_to_many,
        write_into_the_other_layers_cache,
    ],
)
def test_a_constant_of_the_files_own_never_reaches_the_engine(
    variant: Path, gemma4: Weights, edit: Callable[[onnx.ModelProto], object], tmp_path: Path
) -> None:
    copy = shutil.copytree(variant, tmp_path / "copy")
    change(copy, edit)
    with pytest.raises(EngineError, match="is not the graph of this decoder"):
        check(copy, gemma4.decoder)


def test_each_cache_has_its_own_graph(folder: Path, weights: Weights) -> None:
    """What a layer without keys reads of the others is of the cache's type."""
    for cache in ("f32", "f16", "q8"):
        other = {"f32": "f16", "f16": "q8", "q8": "f32"}[cache]
        suffix = {"f32": "", "f16": "-kv16", "q8": "-kv8"}[cache]
        kind: Any = cache
        check(folder / f"onnx-f32{suffix}", weights.decoder, kind)
        with pytest.raises(EngineError, match=f"has no KV cache of {other}"):
            start(folder / f"onnx-f32{suffix}", weights.decoder, kv_cache=other)
