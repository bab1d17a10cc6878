"""Graphs that an exporter wrote: what they may hold, what they must have, and that their sessions can be put back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import exported_models
import msgspec
import numpy as np
import onnx
import pytest
from decoders import changed as decoder_changed
from onnx import TensorProto, helper, numpy_helper

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.exported import Cell
from edgepack.errors import EngineError, UsageError
from edgepack.runtime import Options
from edgepack_runtimes.onnx import OnnxRuntime, foreign
from edgepack_runtimes.onnx.exported import ExportedSession

IDS = [int(i) for i in np.random.default_rng(1).integers(0, exported_models.VOCABULARY, exported_models.CONTEXT)]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    exported_models.write_graph(folder, exported_models.weights())
    return folder


@pytest.fixture
def variant(written: Path, tmp_path: Path) -> Path:
    """A variant that a test may damage."""
    return Path(shutil.copytree(written, tmp_path / "variant"))


def open_(variant: Path, decoder: Decoder | None = None, **changes: object) -> ExportedSession:
    options = {"context": 96, "threads": 1, "kv_cache": "f32", "chunk": 16} | changes
    session = OnnxRuntime().open(variant, decoder or exported_models.decoder(variant), Options(**options))  # type: ignore[arg-type]
    assert isinstance(session, ExportedSession)
    return session


@pytest.mark.parametrize("chunk", [1, 7, 96])
def test_the_logits_are_the_models(chunk: int, written: Path) -> None:
    found = open_(written, chunk=chunk).forward_all(IDS)
    expected = exported_models.logits(exported_models.weights(), IDS).astype(np.float64)
    assert np.square(found - expected).sum() / np.square(expected).sum() < 1e-11


def test_positions_that_are_one_ahead_are_other_logits(tmp_path: Path) -> None:
    exported_models.write_graph(tmp_path, exported_models.weights(), ahead=1)
    found = open_(tmp_path).forward_all(IDS[:40])
    expected = exported_models.logits(exported_models.weights(), IDS[:40])
    assert np.square(found - expected).sum() / np.square(expected).sum() > 1e-3


def test_a_snapshot_is_the_cache_up_to_its_length(written: Path) -> None:
    session = open_(written)
    session.forward(IDS[:30])
    session.rewind(20)
    state, expected = session.snapshot(), session.forward(IDS[20:25])
    other = open_(written)
    other.forward(IDS[50:60])
    other.restore(state)
    assert other.length == 20
    np.testing.assert_array_equal(other.forward(IDS[20:25]), expected)
    with pytest.raises(ValueError, match="damaged"):
        other.restore(state[:-1] + bytes([state[-1] ^ 1]))
    assert other.length == 25


def test_a_repack_is_refused(written: Path) -> None:
    with pytest.raises(UsageError, match="repack"):
        open_(written, repack=True)


def named(decoder: Decoder, **changes: object) -> Decoder:
    """Return a decoder whose graph has other names."""
    assert decoder.exported
    graph = msgspec.structs.replace(decoder.exported.graph, **changes)
    return msgspec.structs.replace(decoder, exported=msgspec.structs.replace(decoder.exported, graph=graph))


@pytest.mark.parametrize(
    "change",
    [
        lambda d: named(d, positions=None),
        lambda d: named(d, logits="present.0.key"),
        lambda d: named(d, ids="tokens"),
        lambda d: named(d, cells=(Cell("past_key_values.0.key", "elsewhere"), *d.exported.graph.cells[1:])),
        lambda d: msgspec.structs.replace(d, n_vocab=383),
        lambda d: decoder_changed(d, n_kv_heads=2),
        lambda d: decoder_changed(d, head_dim=4),
    ],
)
def test_a_graph_that_is_not_the_manifests(change: Callable[[Decoder], Decoder], written: Path) -> None:
    decoder = change(exported_models.decoder(written))
    with pytest.raises(EngineError, match="is not the manifest's graph"):
        open_(written, decoder)


def changed(variant: Path, change: Callable[[onnx.ModelProto], object]) -> None:
    path = variant / "model.onnx"
    model = onnx.load(str(path), load_external_data=False)
    change(model)
    path.write_bytes(model.SerializeToString())


def graph_inside(model: onnx.ModelProto) -> None:
    inner = helper.make_graph([], "inner", [], [])
    model.graph.node.append(helper.make_node("If", ["seen"], ["y"], then_branch=inner, else_branch=inner))


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 30


def placed(key: str, value: str) -> Callable[[onnx.ModelProto], None]:
    """Return a change of where the first tensor outside of the graph lies."""

    def change(model: onnx.ModelProto) -> None:
        tensor = next(each for each in model.graph.initializer if each.data_location == TensorProto.EXTERNAL)
        next(entry for entry in tensor.external_data if entry.key == key).value = value

    return change


def constant(model: onnx.ModelProto) -> None:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), "c")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.ClearField("raw_data")
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "16")):
        tensor.external_data.add(key=key, value=value)
    model.graph.node.append(helper.make_node("Constant", [], ["c"], value=tensor))


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda m: m.graph.node.append(helper.make_node("Attack", [], ["y"], domain="evil")), "evil.Attack"),
        (lambda m: m.graph.node.append(helper.make_node("Attention", [], ["y"], domain="com.microsoft")), "microsoft"),
        (lambda m: m.graph.node.append(helper.make_node("RandomNormal", [], ["y"], shape=[1])), "RandomNormal"),
        (graph_inside, "an? attribute has the field 6"),
        (lambda m: m.functions.add(name="f", domain="evil"), "a model has the field 25"),
        (lambda m: m.metadata_props.add(key="a", value="b"), "a model has the field 14"),
        (lambda m: m.graph.sparse_initializer.add(), "a graph has the field 15"),
        (lambda m: m.opset_import.add(domain="evil", version=1), "asks for the operators"),
        (other_opset, "asks for the operators"),
        (placed("location", "../other.data"), "lies in '../other.data'"),
        (placed("offset", str(1 << 40)), "ends at byte"),
        (placed("length", "4"), "its dimensions"),
        (placed("offset", "-8"), "no valid offset"),
        (constant, "lies in '/etc/passwd'"),
        (lambda m: m.graph.initializer.add(name="t", data_type=8, dims=[1]), "the type 8"),
        (lambda m: m.graph.initializer.add(name="t", data_type=1, dims=[1 << 40]), "its dimensions"),
    ],
)
def test_what_a_graph_may_not_hold(change: Callable[[onnx.ModelProto], object], why: str, variant: Path) -> None:
    foreign.check(variant)
    changed(variant, change)
    with pytest.raises(EngineError, match=why):
        foreign.check(variant)
    with pytest.raises(EngineError, match="may hold"):
        open_(variant, exported_models.decoder(variant))


@pytest.mark.parametrize("content", [b"", b"\x00", b"\x3a\x05ab", b"\xff" * 100])
def test_what_is_no_model(content: bytes, variant: Path) -> None:
    (variant / "model.onnx").write_bytes(content)
    with pytest.raises(EngineError, match="may hold"):
        foreign.check(variant)


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx.data"])
def test_a_file_that_is_missing(name: str, variant: Path) -> None:
    (variant / name).unlink()
    with pytest.raises(EngineError, match=name):
        foreign.check(variant)


def test_weights_in_the_graph_are_a_graph_that_is_too_large(variant: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "_MOST_BYTES", 1000)
    with pytest.raises(EngineError, match="more than 1000 bytes"):
        foreign.check(variant)
