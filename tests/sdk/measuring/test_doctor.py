"""The doctor: what to install on which machine, from facts of machines that nobody needs to have."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from edgepack.device.hardware import Hardware
from edgepack.measuring.doctor import installs, notes
from edgepack.runtime import Support
from edgepack_runtimes.gguf import GgufRuntime, library, selfcheck
from edgepack_runtimes.mlx import MlxRuntime
from edgepack_runtimes.onnx import OnnxRuntime

PC = Hardware("linux", "x86_64", 4, 8, None, 16 << 30, 8 << 30)
PI = replace(PC, machine="arm64")
OLD_PI = replace(PC, machine="armv7l")
NVIDIA = replace(PC, accelerators=("cuda",), gpus=("NVIDIA GeForce RTX 4060",))
MAC = replace(PC, system="darwin", machine="arm64", accelerators=("metal",))
INTEL_MAC = replace(PC, system="darwin")
WINDOWS = replace(PC, system="windows")

CUDA_BUILD = 'CMAKE_ARGS="-DGGML_CUDA=on" pip install llama-cpp-python==0.3.36'
ALL = {"gguf": "pip install 'edgepack[gguf]'", "onnx": "pip install 'edgepack[onnx]'"}


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without any engine."""
    monkeypatch.setattr(
        selfcheck, "verdict", lambda engine: selfcheck.Verdict((), reason=f"{engine.distribution} is not installed.")
    )
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr("edgepack_runtimes.mlx._is_installed", lambda: False)


def probed(hardware: Hardware) -> dict[str, Support]:
    return {engine.name: engine.probe(hardware) for engine in (GgufRuntime(), MlxRuntime(), OnnxRuntime())}


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("hardware", "lines"),
    [
        (PC, ALL),
        (PI, ALL),
        (MAC, {**ALL, "mlx": "pip install 'edgepack[mlx]'"}),
        (NVIDIA, {**ALL, "gguf": CUDA_BUILD}),
        (INTEL_MAC, {"gguf": ALL["gguf"]}),
        (WINDOWS, {"onnx": ALL["onnx"]}),
        (OLD_PI, {}),
    ],
)
def test_a_bare_machine_is_told_what_it_can_install(hardware: Hardware, lines: dict[str, str]) -> None:
    assert installs(hardware, probed(hardware)) == lines


@pytest.mark.usefixtures("bare")
def test_what_no_machine_of_a_kind_can_install_has_a_reason() -> None:
    assert "armv7l" in str(probed(OLD_PI)["gguf"].reason)
    assert "armv7l" in str(probed(OLD_PI)["onnx"].reason)
    assert "armv7l" in str(probed(OLD_PI)["mlx"].reason)
    assert "Windows" in str(probed(WINDOWS)["gguf"].reason)
    assert "Intel" in str(probed(INTEL_MAC)["onnx"].reason)


def test_the_line_installs_the_version_that_is_bound() -> None:
    compiled = next(engine for engine in library.ENGINES if engine.distribution == "llama-cpp-python")
    assert library.install_line(NVIDIA, None) == CUDA_BUILD
    assert CUDA_BUILD.endswith(f"{compiled.distribution}=={compiled.version}")


def test_an_engine_without_cuda_is_replaced_by_one_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    own, compiled, wheel = library.ENGINES
    here = selfcheck.Verdict(("cpu",), version="0.5.0")
    absent = {
        engine: selfcheck.Verdict((), reason=f"{engine.distribution} is not installed.") for engine in (own, compiled)
    }
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: here if engine is wheel else absent[engine])
    support = GgufRuntime().probe(NVIDIA)
    assert support.devices == ("cpu",)
    assert support.reason == (
        "edgepack-llama is not installed. llama-cpp-python is not installed. xllamacpp sees no cuda device."
    )
    assert installs(NVIDIA, {"gguf": support}) == {"gguf": CUDA_BUILD}
    # pip would keep what it once built of the same version.
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: here if engine is compiled else absent[own])
    assert "--force-reinstall --no-deps --no-cache-dir llama-cpp-python==" in str(GgufRuntime().probe(NVIDIA).install)


def test_an_accelerator_is_worth_more_than_an_engine_compiled_for_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own, compiled, _ = library.ENGINES
    found = {own: ("cpu",), compiled: ("cuda", "cpu")}
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: selfcheck.Verdict(found.get(engine, ("cpu",)), "0.5.0"))
    assert GgufRuntime().probe(NVIDIA).devices == ("cuda", "cpu")
    assert [engine.used for engine in GgufRuntime().engines()] == [False, True, False]


def test_an_engine_with_cuda_needs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: selfcheck.Verdict(("cuda", "cpu"), version="0.5.0"))
    support = GgufRuntime().probe(NVIDIA)
    assert (support.devices, support.reason) == (("cuda", "cpu"), None)
    assert installs(NVIDIA, {"gguf": support}) == {}
    assert not any("cuda" in note for note in notes(NVIDIA, {"gguf": support}, 64))


def test_a_mac_whose_llama_sees_no_gpu_gets_the_one_that_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = library.ENGINES[-1]
    here, absent = selfcheck.Verdict(("cpu",), version="0.6.0"), selfcheck.Verdict((), reason="It is not installed.")
    monkeypatch.setattr(selfcheck, "verdict", lambda engine: here if engine is wheel else absent)
    assert installs(MAC, {"gguf": GgufRuntime().probe(MAC)}) == {"gguf": "pip install llama-cpp-python==0.3.36"}


def test_onnx_on_nvidia_says_why_it_stays_on_the_processor_and_what_to_install() -> None:
    support = OnnxRuntime().probe(NVIDIA)
    assert support.devices == ("cpu",)
    (install,) = installs(NVIDIA, {"onnx": support}).values()
    assert install == "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.27'"
    assert any(
        "onnx leaves cuda idle: This onnxruntime is built without CUDA." in note
        for note in notes(NVIDIA, {"onnx": support}, 64)
    )


def test_notes_are_for_this_machine() -> None:
    ready = {"gguf": Support(("cpu",))}
    assert notes(PC, ready, 64) == ()
    assert notes(PC, {"gguf": Support((), reason="gone")}, 64) == ("No engine can run here: install at least one.",)
    assert "install a 64-bit system" in notes(OLD_PI, ready, 32)[0]
    assert "install a 64-bit Python" in notes(PI, ready, 32)[0]
    assert notes(replace(PC, machine="riscv64"), ready, 64) == ("No engine has wheels for riscv64.",)
    assert "grants 2.5 cores" in notes(replace(PC, quota=2.5), ready, 64)[0]
    assert notes(NVIDIA, ready, 64) == ("This machine has cuda, and no installed engine can use it.",)
    compiling = notes(NVIDIA, {"gguf": Support(("cpu",), install=CUDA_BUILD)}, 64)
    assert "nvcc" in compiling[-1]
