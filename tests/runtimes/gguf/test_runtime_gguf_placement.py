"""Where llama.cpp put the layers, read from its log, and whether it rearranged the weights."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from models import make_llama
from variants import nmse, pack, start, token_ids

from edgepack.bundle.decoder import Decoder
from edgepack.errors import UsageError
from edgepack_runtimes.gguf import GgufRuntime, abi, library, log, repacked
from edgepack_runtimes.gguf.placement import device_of

CUDA = {"CUDA0": "cuda", "CUDA1": "cuda"}
METAL = {"MTL0": "metal"}


def placed(*devices: str) -> list[str]:
    return [f"load_tensors: layer {i:3} assigned to device {name}, is_swa = 0" for i, name in enumerate(devices)]


def buffers(*names: str) -> list[str]:
    return [f"load_tensors: {name:>12} model buffer size =    12.34 MiB" for name in names]


@pytest.mark.parametrize(
    ("lines", "accelerators", "device"),
    [
        (placed("CUDA0", "CUDA0", "CUDA0") + buffers("CPU_Mapped", "CUDA0"), CUDA, "cuda"),
        (placed("CUDA0", "CUDA0", "CUDA1") + buffers("CUDA0", "CUDA1"), CUDA, "cuda"),
        (placed("MTL0", "MTL0", "MTL0") + buffers("MTL0_Mapped", "CPU_Mapped"), METAL, "metal"),
        (placed("CPU", "CPU", "CPU") + buffers("CPU_Mapped"), {}, "cpu"),
        # A device is there, and one layer, or all of them, are not on it.
        (placed("CPU", "CUDA0", "CUDA0") + buffers("CPU_Mapped", "CUDA0"), CUDA, "cpu"),
        ([*placed("CPU", "CPU", "CPU"), "load_tensors: offloaded 3/3 layers to GPU"], CUDA, "cpu"),
        # The layers are said to be there, and their weights are in the memory of the host.
        (placed("CUDA0", "CUDA0", "CUDA0") + buffers("CPU_Mapped", "CUDA_Host"), CUDA, "cpu"),
        # A log that says nothing proves nothing.
        ([], CUDA, "cpu"),
        (placed("CUDA0", "CUDA0") + buffers("CUDA0"), CUDA, "cpu"),
    ],
)
def test_the_device_is_where_all_layers_are(lines: list[str], accelerators: dict[str, str], device: str) -> None:
    assert device_of(lines, accelerators, n_layers=2) == device


def fake_native(*devices: tuple[str, str, int]) -> Any:
    """The functions that name devices: (name, name of the registry, type) of each."""
    return SimpleNamespace(
        ggml_backend_dev_count=lambda: len(devices),
        ggml_backend_dev_get=lambda index: index,
        ggml_backend_dev_name=lambda device: devices[device][0].encode(),
        ggml_backend_dev_type=lambda device: devices[device][2],
        ggml_backend_dev_backend_reg=lambda device: device,
        ggml_backend_reg_name=lambda registry: devices[registry][1].encode(),
    )


@pytest.mark.parametrize(
    ("devices", "accelerators", "names"),
    [
        ([("CPU", "CPU", abi.DEVICE_CPU)], {}, ("cpu",)),
        (
            [("CUDA0", "CUDA", abi.DEVICE_GPU), ("CUDA1", "CUDA", abi.DEVICE_GPU), ("CPU", "CPU", abi.DEVICE_CPU)],
            CUDA,
            ("cuda", "cpu"),
        ),
        (
            [("MTL0", "MTL", abi.DEVICE_GPU), ("BLAS", "BLAS", 3), ("CPU", "CPU", abi.DEVICE_CPU)],
            METAL,
            ("metal", "cpu"),
        ),
    ],
)
def test_devices_of_every_build(
    devices: list[tuple[str, str, int]], accelerators: dict[str, str], names: tuple[str, ...]
) -> None:
    found = library.Library(library.ENGINES[0], fake_native(*devices))
    assert found.accelerators() == accelerators
    assert found.devices() == names


@pytest.fixture(scope="module", params=["q4_0", "q4_k_m"])
def variant(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Decoder]:
    folder = tmp_path_factory.mktemp("placement") / request.param
    source = make_llama(folder.parent / "source", hidden=256, intermediate=512)
    return folder, pack("gguf", source, folder, request.param)


def test_the_installed_engine_logs_what_the_proof_reads(variant: tuple[Path, Decoder]) -> None:
    folder, decoder = variant
    with log.lines() as lines:
        session = start("gguf", folder, decoder)
    session.close()
    assert device_of(lines, {"CPU": "a processor"}, decoder.n_layers) == "a processor"
    assert device_of(lines, {"CPU": "a processor"}, decoder.n_layers + 1) == "cpu"


def test_weights_are_rearranged_as_asked_and_mean_the_same(variant: tuple[Path, Decoder]) -> None:
    if reason := repacked.reason(GgufRuntime()._library().engine):
        pytest.skip(reason)
    folder, decoder = variant
    ids = token_ids(decoder, 20)
    found, other = {}, {}
    for repack in (False, True, None):
        with log.lines() as lines:
            session = start("gguf", folder, decoder, repack=repack)
        found[repack] = session.forward_all(ids)
        other[repack] = any("CPU_REPACK model buffer" in line for line in lines)
        session.close()
    by_rule = folder.name == "q4_0"
    assert not other[False]
    assert other[None] == (by_rule and other[True])
    assert np.array_equal(found[None], found[by_rule])
    assert nmse(found[True], found[False]) < 1e-3  # other kernels, which round the activations otherwise
    if not other[True]:
        pytest.skip("this processor has no other form of these weights")


@pytest.mark.parametrize("engine", ["onnx", "mlx", "fake"])
@pytest.mark.parametrize("repack", [True, False])
def test_a_runtime_that_cannot_choose_refuses(engine: str, repack: bool, variant: tuple[Path, Decoder]) -> None:
    from edgepack import FakeRuntime, runtime
    from edgepack.runtime import Options

    opener = FakeRuntime() if engine == "fake" else runtime.find(engine)
    with pytest.raises(UsageError, match=f"{engine} cannot be told repack={repack}"):
        opener.open(variant[0], variant[1], Options(64, 1, "f32", repack=repack))


@pytest.mark.parametrize("engine", ["gguf", "mlx", "fake"])
@pytest.mark.parametrize("spin", [True, False])
def test_a_runtime_that_cannot_say_whether_threads_spin_refuses(
    engine: str, spin: bool, variant: tuple[Path, Decoder]
) -> None:
    from edgepack import FakeRuntime, runtime
    from edgepack.runtime import Options

    opener = FakeRuntime() if engine == "fake" else runtime.find(engine)
    with pytest.raises(UsageError, match=f"{engine} cannot be told spin={spin}"):
        opener.open(variant[0], variant[1], Options(64, 1, "f32", spin=spin))


def test_gguf_refuses_what_is_no_answer(variant: tuple[Path, Decoder]) -> None:
    with pytest.raises(UsageError, match="repack is 'yes'"):
        start("gguf", *variant, repack="yes")
