"""The onnx runtime: exact against the reference, true to the seam's contract, silent, and wary of its files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import pytest
import variants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models import LINEAR, LLAMA3, make_llama
from onnx import helper
from variants import nmse, token_ids

from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import Cancelled, ContextTooLargeError, EngineError, PromptTooLongError
from edgepack.runtime import Session, find
from edgepack_packager import families, reference
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.proof.execution import ReadBack
from edgepack_packager.targets import find as find_target
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.onnx.check import check

POSITIONS = 160
HARDWARE = Hardware("linux", "x86_64", 2, 2, None, 2**33, 2**33)

MODELS: dict[str, dict[str, Any]] = {
    "tied-llama3": {"rope": LLAMA3, "theta": 500000.0, "hidden": 256, "intermediate": 512, "heads": 8},
    "untied-linear": {"rope": LINEAR, "tied": False, "layers": 3},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "explicit-head-dim": {"hidden": 96, "heads": 6, "kv_heads": 3, "head_dim": 32, "tied": False},
    "head-dim-8": {"heads": 8, "kv_heads": 4, "rope": LLAMA3},
    "head-dim-24": {"heads": 4, "kv_heads": 1, "head_dim": 24},
    "part-blocks": {"hidden": 72, "head_dim": 16, "intermediate": 172, "tied": True},
}


pack = partial(variants.pack, "onnx")
start = partial(variants.start, "onnx")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    """An f32 variant of a small untied llama3-rope model."""
    folder = tmp_path_factory.mktemp("tiny")
    source = make_llama(folder / "source", tied=False, rope=LLAMA3)
    return folder / "variant", pack(source, folder / "variant", "f32")


@pytest.fixture
def session(tiny: tuple[Path, Decoder]) -> Iterator[Session]:
    opened = start(*tiny, context=40, chunk=8)
    yield opened
    opened.close()


# The same model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_f32_is_the_reference(tmp_path: Path, name: str) -> None:
    source = make_llama(tmp_path / "source", **MODELS[name])
    decoder = pack(source, tmp_path / "variant", "f32")
    ids = token_ids(decoder, POSITIONS)
    with open_checkpoint(source) as checkpoint:
        expected = reference.logits(families.open_model(checkpoint), ids)
    session = start(tmp_path / "variant", decoder, chunk=64)
    assert nmse(session.forward_all(ids), expected) <= 1e-10
    session.rewind(0)
    one_by_one = np.stack([session.forward([token]) for token in ids])
    assert nmse(one_by_one, expected) <= 1e-10
    session.close()


def with_exact_activations(folder: Path) -> None:
    """Let the products of quantised weights take their other input as it is, in float32."""
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    levels = [
        attribute for node in model.graph.node for attribute in node.attribute if attribute.name == "accuracy_level"
    ]
    assert levels
    for level in levels:
        assert level.i == 4
        level.i = 1
    (folder / "model.onnx").write_bytes(model.SerializeToString())


@pytest.mark.parametrize("name", ["tied-llama3", "untied-linear", "part-blocks"])
@pytest.mark.parametrize("scheme", ["f16", "int8", "int4", "int4_mixed", "int2", "int4_b128", "int4_b64_asym"])
def test_a_quantised_graph_computes_with_the_numbers_that_were_written(tmp_path: Path, name: str, scheme: str) -> None:
    """Exactly so but for the engine's own rounding of activations to 8 bits in blocks of 32."""
    decoder = pack(make_llama(tmp_path / "source", **MODELS[name]), tmp_path / "variant", scheme)
    ids = token_ids(decoder, POSITIONS)
    reader = find_target("onnx").read(tmp_path / "variant", decoder)
    expected = reference.logits(ReadBack(decoder, reader), ids)
    reader.close()
    session = start(tmp_path / "variant", decoder)
    found = session.forward_all(ids)
    session.close()
    if scheme != "f16":
        assert 1e-10 < nmse(found, expected) < 1e-2
        with_exact_activations(tmp_path / "variant")
        exact = start(tmp_path / "variant", decoder)
        found = exact.forward_all(ids)
        exact.close()
    assert nmse(found, expected) <= 1e-10


@pytest.mark.shared
def test_stories_writes_its_published_text(shared: Path, tmp_path: Path) -> None:
    source = shared / "models" / "stories-260K"
    expected = json.loads((source / "expected_greedy.json").read_text())["greedy_ids_from_bos"]
    decoder = pack(source, tmp_path / "variant", "f32")
    session = start(tmp_path / "variant", decoder)
    found = expected[:1]
    while len(found) < len(expected):
        found.append(int(session.forward(found[-1:]).argmax()))
    assert found == expected
    session.close()


@pytest.mark.oracle
@pytest.mark.shared
@pytest.mark.parametrize("scheme", ["f32", "f16", "int8", "int4", "int4_mixed"])
def test_genai_loads_the_folder_and_writes_the_same_tokens(shared: Path, tmp_path: Path, scheme: str) -> None:
    genai = pytest.importorskip("onnxruntime_genai")
    source = shared / "models" / "stories-260K"
    decoder = pack(source, tmp_path / "variant", scheme)
    expected = json.loads((source / "expected_greedy.json").read_text())
    prompt = expected["greedy_ids_from_bos"][:6]

    session = start(tmp_path / "variant", decoder)
    ids, logits = list(prompt), session.forward(prompt)
    while len(ids) < 120:
        ids.append(int(logits.argmax()))
        logits = session.forward(ids[-1:])
    session.close()

    shutil.copy(source / "tokenizer.json", tmp_path / "variant")  # which lies once in a bundle
    model = genai.Model(str(tmp_path / "variant"))
    parameters = genai.GeneratorParams(model)
    parameters.set_search_options(max_length=120)
    generator = genai.Generator(model, parameters)
    generator.append_tokens(np.array([prompt]))
    while not generator.is_done():
        generator.generate_next_token()
    assert [int(token) for token in generator.get_sequence(0)] == ids
    assert genai.Tokenizer(model).decode(np.array(prompt[1:], np.int32)).strip() == "Once upon a time,"


# The contract --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 7, 8, 40])
def test_chunks_change_nothing(tiny: tuple[Path, Decoder], chunk: int) -> None:
    ids = token_ids(tiny[1], 33)
    whole, parts = start(*tiny, context=40), start(*tiny, context=40, chunk=chunk)
    expected = whole.forward_all(ids)
    assert nmse(parts.forward_all(ids), expected) < 1e-10
    parts.rewind(0)
    last = parts.forward(ids)
    assert nmse(last, expected[-1]) < 1e-10
    assert last.dtype == np.float32
    assert last.shape == (tiny[1].n_vocab,)
    whole.close()
    parts.close()


def test_results_are_the_callers_own(session: Session) -> None:
    first = session.forward([1, 2, 3])
    kept = first.copy()
    first[:] = 0
    session.rewind(0)
    second = session.forward([1, 2, 3])
    session.forward([4])
    assert np.array_equal(second, kept)


def test_rewind_forgets(session: Session, tiny: tuple[Path, Decoder]) -> None:
    ids = token_ids(tiny[1], 20)
    expected = session.forward_all(ids)
    assert session.length == 20
    session.rewind(11)
    assert session.length == 11
    session.forward([0, 0, 0])
    session.rewind(11)
    assert nmse(session.forward_all(ids[11:]), expected[11:]) < 1e-10
    for length in (-1, 21):
        with pytest.raises(ValueError, match="cannot be rewound"):
            session.rewind(length)


@pytest.mark.parametrize("tokens", [[], [-1], [384], [0, 2**40], [0, 2**70], [1.5], [[1, 2]], [True]])
def test_ids_are_checked_before_anything_runs(session: Session, tokens: Any) -> None:
    session.forward([1, 2])
    for call in (session.forward, session.forward_all):
        with pytest.raises(ValueError, match=r"^(a token id is not|the token id .* outside|there is no token id)"):
            call(tokens)
    assert session.length == 2


def test_the_context_can_be_filled_and_not_exceeded(session: Session) -> None:
    session.forward([1] * 30)
    with pytest.raises(PromptTooLongError, match="11 tokens after the 30 in the cache exceed the context of 40"):
        session.forward([1] * 11)
    assert session.length == 30
    session.forward([1] * 10)
    with pytest.raises(PromptTooLongError):
        session.forward_all([1])
    assert session.length == 40


@pytest.mark.parametrize("chunk", [16, 512])
def test_a_cancel_stops_a_forward_and_the_session_goes_on(tiny: tuple[Path, Decoder], chunk: int) -> None:
    """With one chunk for all, the engine itself has to stop in the middle of its run."""
    session = start(*tiny, chunk=chunk)
    ids = token_ids(tiny[1], 500)
    session.forward(ids[:3])
    done = threading.Event()

    def cancel() -> None:
        while not done.is_set():
            session.cancel()

    canceller = threading.Thread(target=cancel)
    canceller.start()
    try:
        with pytest.raises(Cancelled):
            for _ in range(500):  # on a busy machine the other thread may get no turn within one run
                session.forward_all(ids[3:])
                session.rewind(3)
    finally:
        done.set()
        canceller.join()
    assert session.length == 3
    fresh = start(*tiny)
    assert nmse(session.forward_all(ids[3:60]), fresh.forward_all(ids[:60])[3:]) < 1e-10
    session.close()
    fresh.close()


def test_a_cancel_without_a_forward_does_nothing(session: Session) -> None:
    session.cancel()
    session.cancel()
    session.forward([1, 2])
    assert session.length == 2


def test_a_closed_session_says_so(tiny: tuple[Path, Decoder]) -> None:
    session = start(*tiny)
    session.forward([1])
    session.close()
    session.close()
    session.cancel()
    calls: list[Callable[[], object]] = [lambda: session.forward([1]), lambda: session.forward_all([1])]
    for call in (*calls, lambda: session.rewind(0)):
        with pytest.raises(EngineError, match="closed"):
            call()


def test_a_session_belongs_to_its_thread(session: Session) -> None:
    caught: list[EngineError] = []

    def use() -> None:
        for call in (lambda: session.forward([1]), lambda: session.rewind(0), session.close):
            try:
                call()
            except EngineError as error:
                caught.append(error)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert len(caught) == 3
    assert all("belongs to the thread" in error.message for error in caught)
    session.forward([1])


def test_what_the_graph_cannot_do_is_refused(tiny: tuple[Path, Decoder]) -> None:
    with pytest.raises(EngineError, match="no KV cache of f16"):
        start(*tiny, kv_cache="f16")
    with pytest.raises(ContextTooLargeError, match="context of 513 exceeds the 512 positions"):
        start(*tiny, context=513)


def test_no_head_is_computed_for_a_chunk_before_the_last(tiny: tuple[Path, Decoder]) -> None:
    """The graph gives no rows of logits for it, and the engine has none to compute."""
    import onnxruntime

    folder, decoder = tiny
    engine = onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])
    ids = np.array([token_ids(decoder, 6)])
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    cache = np.zeros((1, decoder.attentions[0].n_kv_heads, 0, decoder.attentions[0].head_dim), np.float32)
    feeds |= {node.name: cache for node in engine.get_inputs() if node.name.startswith("past")}
    default = engine.run(["logits"], feeds)[0]
    for first in (0, 5):
        found = engine.run(["logits"], {**feeds, "logits_start": np.array([first])})[0]
        assert nmse(found, default[:, first:]) < 1e-10
    assert engine.run(["logits"], {**feeds, "logits_start": np.array([6])})[0].shape == (1, 0, decoder.n_vocab)


# Support -------------------------------------------------------------------------------------------------------------


def test_the_cpu_is_the_only_device() -> None:
    support = find("onnx").probe(HARDWARE)
    assert support.devices == ("cpu",)
    assert support.kv_caches == ("f32",)
    assert support.version


def test_an_old_engine_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch, tiny: tuple[Path, Decoder]) -> None:
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "__version__", "1.26.0")
    support = find("onnx").probe(HARDWARE)
    assert support.devices == ()
    assert support.reason is not None
    assert "1.26.0 is too old" in support.reason
    with pytest.raises(EngineError, match=r"too old.*pip install"):
        start(*tiny)


def test_a_missing_engine_is_refused_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    support = find("onnx").probe(HARDWARE)
    assert support.devices == ()
    assert support.reason is not None
    assert support.install == "pip install 'edgepack[onnx]'"


def test_an_engine_that_was_imported_with_telemetry_is_reported(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import onnxruntime  # noqa: F401

    monkeypatch.delenv("ORT_DISABLE_TELEMETRY", raising=False)
    find("onnx").probe(HARDWARE)
    assert "telemetry" in caplog.text
    assert os.environ["ORT_DISABLE_TELEMETRY"] == "1"
    caplog.clear()
    find("onnx").probe(HARDWARE)
    assert not caplog.text


USE = """
import sys
from pathlib import Path
import msgspec
from edgepack.bundle.decoder import Decoder
from edgepack.errors import EngineError
from edgepack.runtime import Options, find
decoder = msgspec.json.decode(sys.argv[2], type=Decoder)
session = find("onnx").open(Path(sys.argv[1]), decoder, Options(context=64, threads=2, kv_cache="f32"))
session.forward([1, 2, 3])
session.close()
try:
    find("onnx").open(Path(sys.argv[3]), decoder, Options(64, 2, "f32"))
except EngineError:
    sys.exit(3)
"""


def test_a_session_writes_nothing_says_nothing_and_calls_nobody(tmp_path: Path, tiny: tuple[Path, Decoder]) -> None:
    home = tmp_path / "home"
    home.mkdir()
    broken = shutil.copytree(tiny[0], tmp_path / "broken")
    model = onnx.load(str(broken / "model.onnx"), load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOperator"
    (broken / "model.onnx").write_bytes(model.SerializeToString())
    places = {
        "HOME": str(home),
        "XDG_CACHE_HOME": str(home / "cache"),
        "TMPDIR": str(home),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"} | places
    description = msgspec.json.encode(tiny[1]).decode()
    command = [sys.executable, "-c", USE, str(tiny[0]), description, str(broken)]
    trace = tmp_path / "trace"
    if strace := shutil.which("strace"):
        command = [strace, "-f", "-e", "trace=socket", "-o", str(trace), *command]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    assert list(home.rglob("*")) == []
    if strace:
        assert "exited with 3" in trace.read_text()
        assert "socket(" not in trace.read_text()


# Files that are not what they should be ------------------------------------------------------------------------------


@pytest.fixture
def copy(tmp_path: Path, tiny: tuple[Path, Decoder]) -> Path:
    return shutil.copytree(tiny[0], tmp_path / "copy")


def change(folder: Path, edit: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    edit(model)
    (folder / "model.onnx").write_bytes(model.SerializeToString())


def entry(model: onnx.ModelProto, key: str) -> Any:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "norm.weight")
    return next(part for part in tensor.external_data if part.key == key)


def name_another_file(model: onnx.ModelProto) -> None:
    entry(model, "location").value = "../../../etc/passwd"


def name_a_file_beside(model: onnx.ModelProto) -> None:
    entry(model, "location").value = "genai_config.json"


def name_two_files(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "norm.weight")
    tensor.external_data.add(key="location", value="/etc/passwd")


def reach_beyond_the_data(model: onnx.ModelProto) -> None:
    entry(model, "offset").value = str(10**9)


def start_before_the_data(model: onnx.ModelProto) -> None:
    entry(model, "offset").value = "-64"


def forget_the_length(model: onnx.ModelProto) -> None:
    entry(model, "length").key = "checksum"


def hide_a_file_in_a_sparse_tensor(model: onnx.ModelProto) -> None:
    model.graph.sparse_initializer.add().values.external_data.add(key="location", value="/etc/passwd")


def hide_a_file_in_an_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[0].attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    attribute.t.external_data.add(key="location", value="/etc/passwd")


def hide_a_file_in_a_subgraph(model: onnx.ModelProto) -> None:
    subgraph = helper.make_graph([], "branch", [], [])
    model.graph.node[0].attribute.append(helper.make_attribute("then_branch", subgraph))


def hide_a_file_in_a_function(model: onnx.ModelProto) -> None:
    model.functions.add(name="function")


def carry_more_than_the_graph_needs(model: onnx.ModelProto) -> None:
    model.graph.node[0].doc_string = "a note"


def carry_a_tensor_as_text(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].string_data.append(b"/etc/passwd")


def drop_the_graph(model: onnx.ModelProto) -> None:
    model.ClearField("graph")


@pytest.mark.parametrize(
    "edit",
    [
        name_another_file,
        name_a_file_beside,
        name_two_files,
        reach_beyond_the_data,
        start_before_the_data,
        forget_the_length,
        hide_a_file_in_a_sparse_tensor,
        hide_a_file_in_an_attribute,
        hide_a_file_in_a_subgraph,
        hide_a_file_in_a_function,
        carry_more_than_the_graph_needs,
        carry_a_tensor_as_text,
        drop_the_graph,
    ],
)
def test_a_graph_that_names_what_it_must_not_never_reaches_the_engine(
    copy: Path, tiny: tuple[Path, Decoder], edit: Callable[[onnx.ModelProto], object]
) -> None:
    check(copy, tiny[1])
    change(copy, edit)
    with pytest.raises(EngineError, match="is not a model that edgepack wrote"):
        start(copy, tiny[1])


def attribute(model: onnx.ModelProto, operator: str, name: str) -> Any:
    node = next(node for node in model.graph.node if node.op_type == operator)
    return next(part for part in node.attribute if part.name == name)


def count_heads_that_nobody_has(model: onnx.ModelProto) -> None:
    attribute(model, "GroupQueryAttention", "num_heads").i = 2**62


def multiply_by_nothing(model: onnx.ModelProto) -> None:
    attribute(model, "GroupQueryAttention", "scale").f = 0.0


def set_another_epsilon(model: onnx.ModelProto) -> None:
    attribute(model, "SkipSimplifiedLayerNormalization", "epsilon").f = float("nan")


def make_many_numbers(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("count", onnx.TensorProto.INT64, [1], [2 * 10**8]))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["count"], ["zeros"], name="zeros"))


def multiply_two_matrices(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "FusedMatMul")
    node.input[0] = "embedding.weight"


def give_positions_of_the_files_own(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "GroupQueryAttention")
    node.input[5] = "total_sequence_length"


def call_another_domain(model: onnx.ModelProto) -> None:
    model.graph.node[-1].domain = "com.microsoft.nchwc"


def leave_out_an_operator(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]


def cut_a_table(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "rope.0.cosine")
    del tensor.dims[:]
    tensor.dims.extend([1, 8])
    next(part for part in tensor.external_data if part.key == "length").value = "32"


def begin_elsewhere(model: onnx.ModelProto) -> None:
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "one")
    tensor.int64_data[0] = 2**40


def add_an_initialiser(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(helper.make_tensor("more", onnx.TensorProto.FLOAT, [1], [1.0]))


def wait_for_another_operator_set(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23


@pytest.mark.parametrize(
    "edit",
    [
        count_heads_that_nobody_has,
        multiply_by_nothing,
        set_another_epsilon,
        make_many_numbers,
        multiply_two_matrices,
        give_positions_of_the_files_own,
        call_another_domain,
        leave_out_an_operator,
        cut_a_table,
        begin_elsewhere,
        add_an_initialiser,
        wait_for_another_operator_set,
    ],
)
def test_a_graph_that_is_not_the_decoders_never_reaches_the_engine(
    copy: Path, tiny: tuple[Path, Decoder], edit: Callable[[onnx.ModelProto], object]
) -> None:
    change(copy, edit)
    with pytest.raises(EngineError, match=r"is not (the graph of this decoder|a model that edgepack wrote)"):
        check(copy, tiny[1])


@pytest.mark.parametrize(("name", "value"), [("bits", 3), ("bits", 16), ("block_size", 16), ("block_size", 256)])
@pytest.mark.parametrize("operator", ["MatMulNBits", "GatherBlockQuantized"])
def test_blocks_that_no_scheme_has_are_refused(operator: str, name: str, value: int, tmp_path: Path) -> None:
    decoder = pack(make_llama(tmp_path / "source", hidden=256), tmp_path / "variant", "int2_b128")
    check(tmp_path / "variant", decoder)

    def set_it(model: onnx.ModelProto) -> None:
        attribute(model, operator, name).i = value

    change(tmp_path / "variant", set_it)
    with pytest.raises(EngineError, match="is not the graph of this decoder"):
        check(tmp_path / "variant", decoder)


def test_a_graph_of_another_decoder_is_refused(tiny: tuple[Path, Decoder]) -> None:
    differences = {
        "n_layers": (3, "the operator of layers.2.attention.norm.output"),
        "n_vocab": (400, "embedding.weight"),
    }
    for field, (value, name) in differences.items():
        other = msgspec.structs.replace(tiny[1], **{field: value})
        with pytest.raises(EngineError, match=f"is not the graph of this decoder: {name} differs"):
            start(tiny[0], other)


def test_the_engines_own_reason_is_passed_on(copy: Path, tiny: tuple[Path, Decoder]) -> None:
    def misname(model: onnx.ModelProto) -> None:
        model.graph.node[-1].op_type = "NoSuchOperator"

    change(copy, misname)
    with pytest.raises(EngineError, match=r"could not load the model.*NoSuchOperator"):
        engine.start(copy / "model.onnx", 1, "cpu", spin=False)


@pytest.mark.parametrize("file", ["model.onnx", "model.onnx.data"])
def test_a_missing_or_cut_file_is_named(copy: Path, tiny: tuple[Path, Decoder], file: str) -> None:
    whole = (copy / file).read_bytes()
    (copy / file).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(EngineError, match=r"model\.onnx"):
        start(copy, tiny[1])
    (copy / file).unlink()
    with pytest.raises(EngineError, match=f"{file} could not be read: No such file"):
        start(copy, tiny[1])


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_bytes_are_refused_or_harmless(copy: Path, tiny: tuple[Path, Decoder], data: st.DataObject) -> None:
    content = bytearray((tiny[0] / "model.onnx").read_bytes())
    position = data.draw(st.integers(0, len(content) - 1))
    content[position : position + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=6))
    (copy / "model.onnx").write_bytes(content)
    with suppress(EngineError):
        check(copy, tiny[1])
