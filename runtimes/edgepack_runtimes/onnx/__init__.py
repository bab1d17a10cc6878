"""The onnx runtime: plain onnxruntime on the CPU, or with CUDA on an NVIDIA GPU."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from edgepack.admission import check_sequences
from edgepack.bundle.decoder import Decoder
from edgepack.device.hardware import Hardware, detect
from edgepack.errors import EngineMissingError, UsageError
from edgepack.runtime import Options, Session, Speed, Support
from edgepack_runtimes.onnx import engine
from edgepack_runtimes.onnx.exported import ExportedSession
from edgepack_runtimes.onnx.hidden import HiddenSession
from edgepack_runtimes.onnx.parallel import ParallelSession
from edgepack_runtimes.onnx.session import OnnxSession


class OnnxRuntime:
    """onnxruntime 1.27 or later.

    The GPU takes variants with a KV cache of f16 only: CUDA has no float32 kernel of their attention, and every layer
    would silently go through the host.
    """

    name = "onnx"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether onnxruntime can be imported here and is recent enough."""
        try:
            version: str = engine.load().__version__
        except EngineMissingError as error:
            why = engine.unavailable(hardware)
            return Support((), reason=why or error.message, install=None if why else engine.INSTALL)
        support = Support(
            devices=("cpu",),
            version=version,
            kv_caches=("f32",),
            needs={"cuda": "f16"},
            package=f"{engine.package()} {version}",
        )
        if "cuda" not in hardware.accelerators:
            return support
        if reason := engine.no_cuda():
            # Wheels with CUDA exist for both processors that any has.
            return replace(support, reason=reason, install=engine.INSTALL_CUDA)
        return replace(support, devices=("cuda", "cpu"))

    def speed(self, hardware: Hardware, schemes: Collection[str], limit_s: float) -> Speed | None:
        """Return how fast onnxruntime multiplies here; see ``speed.measure``."""
        from edgepack_runtimes.onnx.speed import measure

        return measure(hardware.threads, schemes, limit_s)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Check the variant's files, then load them on the device that ``probe`` offers first for its KV cache.

        Raises ``UsageError`` for options that it cannot honour.
        """
        if options.repack is not None:
            raise UsageError(
                f"The runtime onnx cannot be told repack={options.repack}.",
                hint="onnxruntime lays out the weights by itself.",
            )
        check_sequences(options.sequences, headless=bool(decoder.headless))
        if decoder.exported:
            if options.sequences > 1:
                raise UsageError(
                    f"sequences is {options.sequences}, and a graph that an exporter wrote evaluates one text.",
                    hint="Leave sequences out, or build the bundle from the weights.",
                )
            return ExportedSession(variant, decoder, options)
        # Only such a variant can run on a GPU: no other needs the look for one.
        device = self.probe(detect()).device(options.kv_cache) if options.kv_cache == "f16" else "cpu"
        if options.sequences > 1:
            return ParallelSession(variant, decoder, options, device or "cpu")
        kind = HiddenSession if decoder.headless else OnnxSession
        return kind(variant, decoder, options, device or "cpu")
