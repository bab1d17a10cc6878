"""The onnx runtime: plain onnxruntime on the CPU."""

from __future__ import annotations

from pathlib import Path

from edgepack.decoder import Decoder
from edgepack.device.hardware import Hardware
from edgepack.errors import EngineMissingError, UsageError
from edgepack.runtime import Options, Support
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.onnx.session import OnnxSession


class OnnxRuntime:
    """onnxruntime 1.27 or later.

    Only the CPU: the graphs compute in float32, and the CUDA build has no float32 kernel of their attention, so that
    every layer would silently go through the host.
    """

    name = "onnx"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether onnxruntime can be imported here and is recent enough."""
        try:
            version: str = engine.load().__version__
        except EngineMissingError as error:
            why = engine.unavailable(hardware)
            return Support((), reason=why or error.message, install=None if why else engine.INSTALL)
        reason = engine.NO_CUDA if "cuda" in hardware.accelerators else None
        return Support(("cpu",), reason=reason, version=version, kv_caches=("f32",))

    def open(self, variant: Path, decoder: Decoder, options: Options) -> OnnxSession:
        """Check the variant's files, then load them. Raises ``UsageError`` for options that it cannot honour."""
        if options.repack is not None:
            raise UsageError(
                f"The runtime onnx cannot be told repack={options.repack}.",
                hint="onnxruntime lays out the weights by itself.",
            )
        return OnnxSession(variant, decoder, options)
