"""onnxruntime itself: imported late, with its telemetry off, and set up to be quiet and bounded."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edgepack.device.hardware import Hardware, narrow_python
from edgepack.errors import EngineError, EngineMissingError

if TYPE_CHECKING:
    from types import ModuleType

    from onnxruntime import InferenceSession

FLOOR = (1, 27)
INSTALL = "pip install 'edgepack[onnx]'"
# Both packages write the same folder: both must go before one comes, whichever was there.
INSTALL_CUDA = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install 'onnxruntime-gpu[cuda,cudnn]>=1.27'"

PROVIDERS = {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}
# What the graphs call the lengths that come from a shape: onnxruntime computes them on the host, where they are read.
_ON_HOST = frozenset({"mask.total", "total_sequence_length", "input.length", "input.start"})
# TensorFloat-32, the default, keeps 10 bits of a float32.
_OPTIONS = {"cuda": {"use_tf32": "0"}, "cpu": {}}

# Longer than any operator of one thread and than what lies between two steps; by default it is up to 0.3 s.
_SPIN_US = "1000"

_TELEMETRY = "ORT_DISABLE_TELEMETRY"
_log = logging.getLogger(__name__)


def load() -> ModuleType:
    """Import onnxruntime and return it. Raises ``EngineMissingError`` where it is missing, broken or too old.

    From 1.29 on it keeps a database in the user's cache folder and looks for a network, unless an environment
    variable says otherwise at the time of its import.
    """
    if _TELEMETRY not in os.environ:
        if "onnxruntime" in sys.modules:
            _log.warning(
                "onnxruntime was imported with its telemetry on. Set %s=1, or import edgepack's runtime first.",
                _TELEMETRY,
            )
        os.environ[_TELEMETRY] = "1"
    try:
        import onnxruntime

        version: str = onnxruntime.__version__  # what is left after the other package was removed has none
    except Exception as error:  # a broken native library can raise anything
        raise EngineMissingError(
            f"onnxruntime could not be imported: {error}.", hint=f"Install it with: {INSTALL}"
        ) from error
    if tuple(int(part) for part in version.split(".")[:2]) < FLOOR:
        raise EngineMissingError(
            f"onnxruntime {version} is too old: before {FLOOR[0]}.{FLOOR[1]} a model can make it read any file.",
            hint="Upgrade it with: pip install -U 'onnxruntime>=1.27'",
        )
    module: ModuleType = onnxruntime
    return module


def unavailable(hardware: Hardware) -> str | None:
    """Return why no recent onnxruntime can be installed on a machine, None where one can."""
    if narrow := narrow_python("onnxruntime"):
        return narrow
    if hardware.system == "darwin" and hardware.machine != "arm64":
        return "onnxruntime has no recent wheel for Macs with an Intel processor."
    if hardware.machine not in ("x86_64", "arm64"):
        return f"onnxruntime has no wheel for {hardware.machine}."
    return None


def no_cuda() -> str | None:
    """Return why CUDA cannot be used here, None where a value can be put on the GPU.

    The list of providers tells what was compiled; whether its libraries load and a GPU answers shows when it is used.
    """
    engine = load()
    if PROVIDERS["cuda"] not in engine.get_available_providers():
        if _is_installed("onnxruntime-gpu"):
            return "The package onnxruntime was installed over onnxruntime-gpu, and is built without CUDA."
        return "This onnxruntime is built without CUDA."
    engine.set_default_logger_severity(4)
    # It prints what it does not find; the libraries may be the system's own.
    with redirect_stdout(io.StringIO()):
        engine.preload_dlls()
    try:
        engine.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception as error:  # whatever its libraries and the driver raise
        return f"onnxruntime cannot use the GPU: {reason(error)}"
    return None


def package() -> str:
    """Return the name of the distribution that onnxruntime is imported from; that of the CPU where both are there."""
    return "onnxruntime-gpu" if _is_installed("onnxruntime-gpu") and not _is_installed("onnxruntime") else "onnxruntime"


def _is_installed(distribution: str) -> bool:
    try:
        return bool(metadata.version(distribution))
    except metadata.PackageNotFoundError:
        return False


def start(path: Path, threads: int, device: str, *, spin: bool) -> InferenceSession:
    """Load a model on a device; ``spin`` says whether its threads do so while they wait.

    Raises ``EngineError`` with the engine's own reason, or where it would compute any of the model elsewhere.
    """
    engine = load()
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = engine.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spin)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", _SPIN_US)
    # A pattern is kept for every shape of the inputs, and the attention mask has another at every token.
    options.enable_mem_pattern = False
    # Only fatal messages reach stderr; what goes wrong is in the exception.
    options.log_severity_level = 4
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    provider = (PROVIDERS[device], _OPTIONS[device])
    try:
        session = engine.InferenceSession(str(path), options, providers=[provider], enable_fallback=0)
    except Exception as error:  # its exceptions have no common base but this
        raise EngineError(f"{path}: onnxruntime could not load the model: {reason(error)}") from error
    if elsewhere := [name for name, used in assigned(session) if used != PROVIDERS[device]]:
        raise EngineError(
            f"{path}: onnxruntime would compute {elsewhere[0]} on the host, with {len(elsewhere) - 1} more operators.",
            hint="See what this machine offers: edgepack doctor",
        )
    return session


def assigned(session: InferenceSession) -> list[tuple[str, str]]:
    """Return the name of each operator and the provider that the engine assigned it to, without those that only
    compute with lengths."""
    return [
        (node.name, part.ep_name)
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if node.name not in _ON_HOST
    ]


def reason(error: Exception) -> str:
    """Return the first line of an engine's message, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
