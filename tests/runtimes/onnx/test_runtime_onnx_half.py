"""The onnx runtime with an f16 cache: on the CPU for real, and how it takes, refuses and proves a GPU.

No test here has a GPU. What stands in for CUDA is the CPU provider under its name, with caches that are copies as a
GPU's are; what the CUDA build assigns to the GPU is told by the names of the operators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import variants
from decoders import RandomWeights, describe
from variants import nmse, token_ids

from edgepack.device.hardware import Hardware
from edgepack.errors import ContextTooLargeError, EngineError
from edgepack.runtime import Options, Snapshots
from edgepack_packager import reference
from edgepack_packager.proof import structure
from edgepack_packager.targets import Model, Request, kv_cache
from edgepack_packager.targets.onnx import OnnxTarget
from edgepack_packager.write import write
from edgepack_runtimes import onnx
from edgepack_runtimes.onnx import OnnxRuntime, engine
from edgepack_runtimes.onnx.session import OnnxSession

DECODER = describe(n_layers=3)
HALF = OnnxTarget().with_kv_cache("f16")
IDS = token_ids(DECODER, 90)
PC = Hardware("linux", "x86_64", 2, 2, None, 2**33, 2**33)
NVIDIA = replace(PC, accelerators=("cuda",))

Open = Callable[..., OnnxSession]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Variants of one model: int4 and f32 with an f16 cache, and f32 with one of f32."""
    out = tmp_path_factory.mktemp("half")
    requests = [Request(HALF, "q4", "int4"), Request(HALF, "f32", "f32"), Request(OnnxTarget(), "f32", "f32")]
    write(RandomWeights(DECODER), requests, out, Model("tiny", DECODER, "f32"))
    return out


@pytest.fixture
def opening(folder: Path) -> Iterator[Open]:
    opened: list[Any] = []

    def start(variant: str = "onnx-f32-kv16", **changes: Any) -> Any:
        opened.append(variants.start("onnx", folder / variant, DECODER, **{"kv_cache": "f16", "context": 96} | changes))
        return opened[-1]

    yield start
    for session in opened:
        session.close()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with CUDA, as far as this runtime sees."""
    import onnxruntime

    put, get = onnxruntime.OrtValue.ortvalue_from_numpy, onnxruntime.OrtValue.numpy

    def copied(values: Any, device: str, number: int) -> Any:
        assert (device, number) == ("cuda", 0)
        return put(values.copy(), "cpu", 0)

    monkeypatch.setattr(onnx, "detect", lambda: NVIDIA)
    monkeypatch.setattr(engine, "PROVIDERS", dict.fromkeys(("cuda", "cpu"), "CPUExecutionProvider"))
    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", copied)
    monkeypatch.setattr(onnxruntime.OrtValue, "numpy", lambda value: get(value).copy())


@pytest.fixture(scope="module")
def exact() -> Any:
    return reference.logits(RandomWeights(DECODER), IDS)


@pytest.fixture(scope="module")
def rounded() -> Any:
    return reference.logits(RandomWeights(DECODER), IDS, cache=kv_cache.half)


@pytest.fixture(scope="module")
def limit(exact: Any) -> float:
    """How far two sums of another order may be apart when they are rounded."""
    return structure.expectation(HALF, RandomWeights(DECODER), IDS, exact, kv_cache.half)[1]


# On the CPU ----------------------------------------------------------------------------------------------------------


def test_the_variant_has_a_name_of_its_own(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"onnx-int4-kv16", "onnx-f32-kv16", "onnx-f32"}


def test_the_default_graph_is_the_one_with_an_f32_cache(tmp_path: Path, folder: Path) -> None:
    same = Request(OnnxTarget().with_kv_cache("f32"), "f32", "f32")
    write(RandomWeights(DECODER), [same], tmp_path, Model("tiny", DECODER, "f32"))
    assert (tmp_path / "onnx-f32/model.onnx").read_bytes() == (folder / "onnx-f32/model.onnx").read_bytes()
    assert (tmp_path / "onnx-f32/model.onnx.data").read_bytes() == (
        folder / "onnx-f32-kv16/model.onnx.data"
    ).read_bytes()


def test_it_is_what_rounding_in_the_attention_gives(opening: Open, exact: Any, rounded: Any, limit: float) -> None:
    session = opening()
    assert session.device == "cpu"
    found = session.forward_all(IDS)
    assert nmse(found, rounded) <= limit < nmse(found, exact)


def test_the_cache_takes_half_the_memory(opening: Open) -> None:
    half, whole = opening(), opening("onnx-f32", kv_cache="f32")
    half.forward(IDS)
    whole.forward(IDS)
    assert len(whole.snapshot()) - len(half.snapshot()) == 2 * DECODER.kv_values_per_token * len(IDS)


@pytest.mark.parametrize("chunk", [1, 7, 90])
def test_chunks_change_nothing_but_roundings(opening: Open, chunk: int, limit: float) -> None:
    whole, parts = opening(), opening(chunk=chunk)
    assert nmse(parts.forward_all(IDS), whole.forward_all(IDS)) <= limit


def test_the_type_of_the_cache_is_the_graphs(opening: Open) -> None:
    with pytest.raises(EngineError, match=r"no KV cache of f32: past_key_values\.0\.key is a tensor\(float16\)"):
        opening(kv_cache="f32")
    with pytest.raises(EngineError, match=r"no KV cache of f16: past_key_values\.0\.key is a tensor\(float\)"):
        opening("onnx-f32")


# What is offered -----------------------------------------------------------------------------------------------------


def test_without_a_gpu_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "no_cuda", pytest.fail)
    support = OnnxRuntime().probe(PC)
    assert (support.devices, support.reason, support.install) == (("cpu",), None, None)


def test_an_engine_without_cuda_says_what_to_install() -> None:
    support = OnnxRuntime().probe(NVIDIA)
    assert support.devices == ("cpu",)
    assert support.reason == "This onnxruntime is built without CUDA."
    assert "onnxruntime-gpu" in str(support.install)
    assert OnnxRuntime().probe(replace(NVIDIA, machine="arm64")).install == engine.INSTALL_CUDA


def test_a_provider_that_is_listed_and_cannot_be_used_is_not_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The installed onnxruntime has no CUDA: what it is told to list fails for real when a value is put there."""
    import onnxruntime

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    support = OnnxRuntime().probe(NVIDIA)
    assert support.devices == ("cpu",)
    assert str(support.reason).startswith("onnxruntime cannot use the GPU: Can't allocate memory")
    assert "onnxruntime-gpu" in str(support.install)


@pytest.mark.usefixtures("cuda")
def test_a_gpu_takes_an_f16_cache_only() -> None:
    support = OnnxRuntime().probe(NVIDIA)
    assert support.devices == ("cuda", "cpu")
    assert (support.device("f16"), support.device("f32")) == ("cuda", "cpu")
    assert support.reason is None


# On a device ---------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("cuda")
def test_a_session_on_the_device_computes_the_same(
    opening: Open, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    session = opening(chunk=16)
    assert session.device == "cuda"
    found = session.forward_all(IDS)
    one_by_one = []
    session.rewind(0)
    for token in IDS:
        one_by_one.append(session.forward([token]))
    monkeypatch.undo()
    exact = opening()
    assert exact.device == "cpu"
    assert nmse(found, exact.forward_all(IDS)) <= limit
    assert nmse(np.stack(one_by_one), found) <= limit


@pytest.mark.usefixtures("cuda")
def test_an_input_is_bound_at_every_step(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU keeps the copy that it took at the binding: what is only written to the array would never reach it."""
    session = opening()
    bound: list[str] = []
    bind = session._bind_input

    def watch(name: str, array: Any, shape: tuple[int, ...]) -> None:
        bound.append(name)
        bind(name, array, shape)

    monkeypatch.setattr(session, "_bind_input", watch)
    session.forward([1])
    session.forward([2])
    assert bound == ["input_ids", "attention_mask", "logits_start"] * 2


@pytest.mark.usefixtures("cuda")
def test_a_snapshot_leaves_the_device_and_comes_back(
    opening: Open, monkeypatch: pytest.MonkeyPatch, limit: float
) -> None:
    session, other = opening(), opening()
    assert isinstance(session, Snapshots)
    session.forward(IDS[:40])
    state = session.snapshot()
    expected = session.forward_all(IDS[40:])
    other.forward(IDS[50:60])
    other.restore(state)
    assert other.length == 40
    assert np.array_equal(other.forward_all(IDS[40:]), expected)
    monkeypatch.undo()
    on_cpu = opening()
    on_cpu.restore(state)
    assert nmse(on_cpu.forward_all(IDS[40:]), expected) <= limit


def test_an_f32_cache_stays_on_the_cpu(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx, "detect", lambda: NVIDIA)
    monkeypatch.setattr(engine, "no_cuda", pytest.fail)
    session = OnnxRuntime().open(folder / "onnx-f32", DECODER, Options(96, 1, "f32"))
    assert session.device == "cpu"
    session.close()


def placed(*parts: tuple[str, str]) -> list[Any]:
    """What onnxruntime tells of operators and their providers, one part each."""
    return [
        SimpleNamespace(ep_name=provider, get_nodes=lambda name=name: [SimpleNamespace(name=name)])
        for name, provider in parts
    ]


def test_an_operator_on_the_host_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where CUDA does not load, or lacks a kernel, onnxruntime goes on with the CPU and says nothing: here for real."""
    import onnxruntime

    path = folder / "onnx-f32-kv16/model.onnx"
    make = onnxruntime.InferenceSession

    def without_cuda(*arguments: Any, providers: Any, **options: Any) -> Any:
        assert providers == [("CUDAExecutionProvider", {"use_tf32": "0"})]
        assert options == {"enable_fallback": 0}
        return make(*arguments, providers=["CPUExecutionProvider"])

    monkeypatch.setattr(onnxruntime, "InferenceSession", without_cuda)
    with pytest.raises(EngineError, match=r"would compute mask\.count on the host, with \d+ more operators"):
        engine.start(path, 1, "cuda", spin=False)


def test_only_lengths_may_be_computed_on_the_host(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu 1.31 puts these two on the host, and with an f32 cache every layer's attention too."""
    session = opening()
    lengths = [("total_sequence_length", "CPUExecutionProvider"), ("input.start", "CPUExecutionProvider")]
    head = ("logits", "CUDAExecutionProvider")
    stray = ("layers.0.attention.output", "CPUExecutionProvider")
    for parts, device in (([*lengths, head], "cuda"), ([*lengths, head, stray], "cpu")):
        told = SimpleNamespace(get_provider_graph_assignment_info=lambda parts=parts: placed(*parts))
        with monkeypatch.context() as patch:
            patch.setattr(session, "_engine", told)
            assert session.device == device


def test_every_operator_has_a_provider_that_is_told(opening: Open) -> None:
    session = opening()
    names = [name for name, _ in engine.assigned(session._engine)]
    assert {provider for _, provider in engine.assigned(session._engine)} == {"CPUExecutionProvider"}
    assert {f"layers.{layer}.attention.output" for layer in range(DECODER.n_layers)} <= set(names)


@pytest.mark.usefixtures("cuda")
def test_a_full_gpu_is_a_context_too_large(opening: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnxruntime

    put = onnxruntime.OrtValue.ortvalue_from_numpy

    def full(values: Any, *where: Any) -> Any:
        if values.ndim > 1:
            raise RuntimeError("Failed to allocate memory for requested buffer")
        return put(values, *where)

    monkeypatch.setattr(onnxruntime.OrtValue, "ortvalue_from_numpy", full)
    with pytest.raises(ContextTooLargeError, match="which the GPU does not grant"):
        opening()
