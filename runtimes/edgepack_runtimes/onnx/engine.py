"""onnxruntime itself: imported late, with its telemetry off, and set up to be quiet and bounded."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.device.hardware import Hardware
from edgepack.errors import EngineError, EngineMissingError

if TYPE_CHECKING:
    from types import ModuleType

    from onnxruntime import InferenceSession

FLOOR = (1, 27)
INSTALL = "pip install 'edgepack[onnx]'"
NO_CUDA = (
    "The graphs compute in float32, and ONNX Runtime has no float32 kernel of their attention for CUDA, "
    "with onnxruntime-gpu neither."
)

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
    except Exception as error:  # a broken native library can raise anything
        raise EngineMissingError(
            f"onnxruntime could not be imported: {error}.", hint=f"Install it with: {INSTALL}"
        ) from error
    version: str = onnxruntime.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < FLOOR:
        raise EngineMissingError(
            f"onnxruntime {version} is too old: before {FLOOR[0]}.{FLOOR[1]} a model can make it read any file.",
            hint="Upgrade it with: pip install -U 'onnxruntime>=1.27'",
        )
    module: ModuleType = onnxruntime
    return module


def unavailable(hardware: Hardware) -> str | None:
    """Return why no recent onnxruntime can be installed on a machine, None where one can."""
    if hardware.system == "darwin" and hardware.machine != "arm64":
        return "onnxruntime has no recent wheel for Macs with an Intel processor."
    if hardware.machine not in ("x86_64", "arm64"):
        return f"onnxruntime has no wheel for {hardware.machine}."
    return None


def start(path: Path, threads: int) -> InferenceSession:
    """Load a model on the CPU. Raises ``EngineError`` with the engine's own reason."""
    engine = load()
    options = engine.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = engine.ExecutionMode.ORT_SEQUENTIAL
    # Threads that spin while they wait take the cores from others on a shared device, and from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # A pattern is kept for every shape of the inputs, and the attention mask has another at every token.
    options.enable_mem_pattern = False
    # Only fatal messages reach stderr; what goes wrong is in the exception.
    options.log_severity_level = 4
    try:
        return engine.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common base but this
        raise EngineError(f"{path}: onnxruntime could not load the model: {reason(error)}") from error


def reason(error: Exception) -> str:
    """Return the first line of an engine's message, as a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".") + "."
