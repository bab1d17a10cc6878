"""The gguf runtime: llama.cpp's C interface through ctypes, from a wheel that needs no compiler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.device.hardware import Hardware
from edgepack.errors import EngineMissingError
from edgepack.runtime import Session, Support

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgepack.bundle.decoder import Decoder
    from edgepack.runtime import Options, Speed
    from edgepack_runtimes.gguf.library import Engine, Library
    from edgepack_runtimes.gguf.selfcheck import Verdict

__all__ = ["GgufRuntime"]


class GgufRuntime:
    """llama.cpp behind the seam. A variant's folder holds ``model.gguf``.

    An engine that fails its selfcheck on this machine is passed over with its reason in the log, and the next is taken.
    """

    name = "gguf"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether an engine runs here: each is tried in a child process, once per process of the caller."""
        from edgepack_runtimes.gguf.library import install_line, lacks_openmp, openmp_line, unavailable

        engine, found = _choose()
        install = install_line(hardware, engine)
        if engine is None and lacks_openmp(found.reason):
            install = openmp_line()
        if engine is None:
            return Support((), reason=unavailable(hardware) or found.reason, install=install)
        support = Support(found.devices, version=found.version, kv_caches=("f16", "f32"))
        unseen = [name for name in hardware.accelerators if name not in found.devices]
        if not unseen:
            return support
        reason = f"{found.reason or ''} {engine.distribution} sees no {unseen[0]} device.".strip()
        return replace(support, reason=reason, install=install)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Load ``model.gguf`` of the variant's folder. Raises ``EngineMissingError`` or ``EngineError``.

        Raises ``UsageError`` for options that it cannot honour.
        """
        from edgepack_runtimes.gguf.load import open_session

        return open_session(self._library(), variant / "model.gguf", decoder, options)

    def tokenize(self, variant: Path, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids that llama.cpp gives to texts with the variant's vocabulary; see ``vocabulary.tokenize``."""
        from edgepack_runtimes.gguf.vocabulary import tokenize

        return tokenize(self._library(), variant / "model.gguf", texts, special=special)

    def known_differences(
        self, variant: Path, tokenizer: Mapping[str, object], texts: Sequence[str], *, special: bool
    ) -> list[str | None]:
        """Return for each text why llama.cpp cannot tokenise it as a parsed tokenizer.json does, None where it can."""
        from edgepack_runtimes.gguf.vocabulary import known_differences

        return known_differences(variant / "model.gguf", tokenizer, texts, special=special)

    def quantize(self, type_name: str, rows: NDArray[np.float32]) -> NDArray[np.uint8]:
        """Encode float32 [n, k] as uint8 [n, row bytes] with ggml's own quantiser; see ``quantize.quantize``."""
        from edgepack_runtimes.gguf.quantize import quantize

        return quantize(self._library(), type_name, rows)

    def engine_version(self) -> str:
        """Return llama.cpp's version with the distribution it came in. Raises ``EngineMissingError`` without one."""
        return self._library().version

    def speed(self, hardware: Hardware) -> Speed:
        """Return how fast the engine multiplies here; see ``speed.measure``."""
        from edgepack_runtimes.gguf.speed import measure

        return measure(self._library(), hardware.threads)

    def _library(self) -> Library:
        from edgepack_runtimes.gguf import library

        engine, found = _choose()
        if engine is None:
            raise EngineMissingError(found.reason or "", hint=f"Install it with: {library.INSTALL}")
        return library.load(engine)


def _choose() -> tuple[Engine | None, Verdict]:
    """Return the best engine that runs here with its verdict, or None, with the reasons of those that do not."""
    from edgepack_runtimes.gguf import library, selfcheck

    reasons: list[str] = []
    for engine in library.ENGINES:
        found = selfcheck.verdict(engine)
        if found.devices:
            return engine, replace(found, reason=" ".join(reasons) or None)
        reasons.append(found.reason or f"{engine.distribution} offers no device.")
    return None, selfcheck.Verdict((), reason=" ".join(reasons))
