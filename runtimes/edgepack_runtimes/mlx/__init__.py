"""The MLX runtime: mlx with a model of its own, on Metal; on a build without Metal, an oracle on the CPU.

Importing this module does not import mlx.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from edgepack.admission import check_sequences
from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware, narrow_python
from edgepack.errors import EngineError, EngineMissingError, UsageError
from edgepack.runtime import Options, Session, Support

INSTALL = "pip install 'edgepack[mlx]'"


class MlxRuntime:
    """Opens the folders that mlx-lm loads, without mlx-lm, whose model files are not exact for every decoder.

    A KV cache of "f16" holds 16-bit numbers of the activations' type; where those are float32, bfloat16 for a ``wide``
    decoder and float16 for any other. "f32" makes a quantised variant compute in float32: its scales and norms are
    widened, which is exact and takes half a bit a weight. The CPU build offers "f32" alone, and computes in float32
    whatever is stored, up to 30 times as fast as in 16 bits; on a GPU a variant of 16-bit floats keeps its activations
    under "f32", so that only the cache grows and no value changes. ``Options.threads`` has no effect: Metal runs on
    the GPU, and the CPU build computes in one thread.
    """

    name = "mlx"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether mlx can run here: on "metal" with Apple Silicon, else on "cpu" where there is a build of it."""
        if narrow := narrow_python("mlx"):
            return Support((), reason=narrow)
        if hardware.system == "windows":
            return Support((), reason="MLX has no build for Windows.")
        if hardware.system == "darwin" and hardware.machine != "arm64":
            return Support((), reason="MLX needs Apple Silicon; this Mac has an Intel processor.")
        if hardware.machine not in ("x86_64", "arm64"):
            return Support((), reason=f"MLX has no build for {hardware.machine}.")
        if not _is_installed():
            return Support((), reason="mlx is not installed.", install=INSTALL)
        found = version("mlx")
        if "metal" in hardware.accelerators:
            return Support(("metal",), version=found, kv_caches=("f16", "f32"), package=f"mlx {found}")
        return Support(("cpu",), version=found, kv_caches=("f32",), package=f"mlx {found}")

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Load a variant; the calling thread is the session's. Raises ``EngineMissingError`` or ``EngineError``."""
        if not _is_installed():
            raise EngineMissingError("mlx is not installed.", hint=f"Install it with: {INSTALL}")
        if options.kv_cache == "q8":
            raise UsageError("The runtime mlx has no KV cache of q8.", hint="Ask for kv_cache=f16 or f32.")
        if options.repack is not None:
            raise UsageError(
                f"The runtime mlx cannot be told repack={options.repack}.", hint="MLX reads the weights as stored."
            )
        if options.spin is not None:
            raise UsageError(f"The runtime mlx cannot be told spin={options.spin}.", hint="MLX has threads of its own.")
        if _forked:
            raise EngineError(
                "mlx was in use where this process was forked from, and does not survive a fork.",
                hint="Start the process anew (multiprocessing calls it spawn), or load with isolate=True.",
            )
        check_sequences(options.sequences, headless=bool(decoder.headless))
        if decoder.exported:
            if options.sequences > 1:
                raise UsageError(
                    f"sequences is {options.sequences}, and mlx-lm's model code evaluates one text at a time here.",
                    hint="Leave sequences out, or build the bundle from the weights.",
                )
            from edgepack_runtimes.mlx.exported import open_exported

            return open_exported(variant, decoder, options)
        from edgepack_runtimes.mlx.opening import open_session

        return open_session(variant, decoder, options)


_forked = False


def _note_fork() -> None:
    """In a fork, where the threads of mlx are gone: what waits for them waits for ever."""
    global _forked
    _forked = _forked or "mlx.core" in sys.modules


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _is_installed() -> bool:
    """Say whether mlx is here whole: without its platform's half it is an empty namespace."""
    try:
        return all(map(find_spec, ("mlx", "mlx.core"))) and bool(version("mlx"))
    except (ImportError, ValueError):  # PackageNotFoundError is an ImportError
        return False
