"""The MLX runtime: mlx with mlx-lm's model files, on Metal; on a build without Metal, an oracle on the CPU.

Importing this module imports neither.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

from edgepack.decoder import Decoder
from edgepack.errors import EngineMissingError
from edgepack.hardware import Hardware
from edgepack.runtime import Options, Session, Support

INSTALL = "pip install 'edgepack[mlx]'"


class MlxRuntime:
    """Opens the folders that mlx-lm loads. ``Support.version`` is mlx-lm's, ``floor`` of a variant too.

    A KV cache of "f16" holds 16-bit numbers of the activations' type, float16 where those are float32. "f32" makes a
    quantised variant compute in float32: its scales and norms are widened, which is exact, takes half a bit a weight,
    and on the CPU build is up to 30 times as fast. A variant of 16-bit floats keeps its activations under "f32",
    so that only the cache grows and no value changes. The CPU build offers "f32" alone. ``Options.threads`` has no
    effect: Metal runs on the GPU, and the CPU build computes in one thread.
    """

    name = "mlx"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether mlx can run here: on "metal" with Apple Silicon, else on "cpu" where there is a build of it."""
        if hardware.system == "windows":
            return Support((), reason="MLX has no build for Windows.")
        if hardware.system == "darwin" and hardware.machine != "arm64":
            return Support((), reason="MLX needs Apple Silicon; this Mac has an Intel processor.")
        missing = _missing()
        if missing:
            return Support((), reason=f"{missing} is not installed.", install=INSTALL)
        if "metal" in hardware.accelerators:
            return Support(("metal",), version=version("mlx-lm"), kv_caches=("f16", "f32"))
        return Support(("cpu",), version=version("mlx-lm"), kv_caches=("f32",))

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Load a variant; the calling thread is the session's. Raises ``EngineMissingError`` or ``EngineError``."""
        missing = _missing()
        if missing:
            raise EngineMissingError(f"{missing} is not installed.", hint=f"Install it with: {INSTALL}")
        from edgepack_runtimes.mlx.session import open_session

        return open_session(variant, decoder, options)


def _missing() -> str | None:
    """Return the package that is not there. mlx alone is a namespace without its platform's half."""
    for package, modules in (("mlx", ("mlx", "mlx.core")), ("mlx-lm", ("mlx_lm",))):
        if not all(map(_exists, modules)):
            return package
    try:
        version("mlx-lm")
    except PackageNotFoundError:
        return "mlx-lm"
    return None


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):
        return False
