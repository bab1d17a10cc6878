"""The gguf runtime: llama.cpp's C interface through ctypes, from a wheel that needs no compiler."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgepack.device import engine
from edgepack.device.hardware import Hardware
from edgepack.device.state import preferred
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
    """llama.cpp behind the seam. A variant's folder holds ``model.gguf``; what a build compares with may be in parts,
    ``model-00001-of-00003.gguf`` and so on.

    An engine that fails its selfcheck on this machine is passed over with its reason in the log, and the next is taken.
    """

    name = "gguf"

    def probe(self, hardware: Hardware) -> Support:
        """Say whether an engine runs here: each is tried in a child process, once per process of the caller."""
        from edgepack_runtimes.gguf.library import (
            install_line,
            installed,
            lacks_openmp,
            openmp_line,
            unavailable,
        )

        chosen, found = _choose()
        install = install_line(hardware, chosen)
        if chosen is None and lacks_openmp(found.reason):
            install = openmp_line()
        if chosen is None:
            return Support((), reason=unavailable(hardware) or found.reason, install=install)
        support = Support(
            found.devices,
            version=found.version,
            kv_caches=("f16", "f32", "q8"),
            # An accelerator's speed is not the processor's.
            better=_better(chosen) if found.devices == ("cpu",) else None,
            package=f"{chosen.distribution} {installed(chosen)}",
            code=chosen.code,
        )
        unseen = [name for name in hardware.accelerators if name not in found.devices]
        if not unseen:
            return support
        reason = f"{found.reason or ''} {chosen.distribution} sees no {unseen[0]} device.".strip()
        return replace(support, reason=reason, install=install)

    def open(self, variant: Path, decoder: Decoder, options: Options) -> Session:
        """Load ``model.gguf`` of the variant's folder. Raises ``EngineMissingError`` or ``EngineError``.

        Raises ``UsageError`` for options that it cannot honour.
        """
        from edgepack_runtimes.gguf.load import open_session

        return open_session(self._library(), _file(variant), decoder, options)

    def tokenize(self, variant: Path, texts: Sequence[str], *, special: bool) -> list[list[int]]:
        """Return the ids that llama.cpp gives to texts with the variant's vocabulary; see ``vocabulary.tokenize``."""
        from edgepack_runtimes.gguf.vocabulary import tokenize

        return tokenize(self._library(), _file(variant), texts, special=special)

    def known_differences(
        self, variant: Path, tokenizer: Mapping[str, object], texts: Sequence[str], *, special: bool
    ) -> list[str | None]:
        """Return for each text why llama.cpp cannot tokenise it as a parsed tokenizer.json does, None where it can."""
        from edgepack_runtimes.gguf.vocabulary import known_differences

        return known_differences(_file(variant), tokenizer, texts, special=special)

    def quantize(
        self, type_name: str, rows: NDArray[np.float32], importance: NDArray[np.float32] | None = None
    ) -> NDArray[np.uint8]:
        """Encode float32 [n, k] as uint8 [n, row bytes] with ggml's own quantiser; see ``quantize.quantize``."""
        from edgepack_runtimes.gguf.quantize import quantize

        return quantize(self._library(), type_name, rows, importance)

    def engines(self) -> tuple[engine.Engine, ...]:
        """Return the engines that can be bound, best first, each with what its selfcheck found."""
        from edgepack_runtimes.gguf import library, selfcheck

        used, _ = _choose()
        verdicts = {known: selfcheck.verdict(known) for known in library.ENGINES}
        return tuple(
            engine.Engine(
                name=known.distribution,
                installed=library.installed(known),
                version=found.version,
                devices=found.devices,
                reason=found.reason,
                used=known is used,
            )
            for known, found in verdicts.items()
        )

    def engine_version(self) -> str:
        """Return llama.cpp's version with the distribution it came in. Raises ``EngineMissingError`` without one."""
        return self._library().version

    def speed(self, hardware: Hardware, schemes: Collection[str], limit_s: float) -> Speed | None:
        """Return how fast the engine multiplies here; see ``speed.measure``."""
        from edgepack_runtimes.gguf.speed import measure

        return measure(self._library(), hardware.threads, schemes, limit_s)

    def _library(self) -> Library:
        from edgepack_runtimes.gguf import library

        chosen, found = _choose()
        if chosen is None:
            raise EngineMissingError(found.reason or "", hint=f"Install it with: {library.INSTALL}")
        return library.load(chosen)


def _better(chosen: Engine) -> str | None:
    """Return the command that brings an engine compiled for this processor, None where it is the one chosen."""
    from edgepack_runtimes.gguf import library, selfcheck

    if chosen.own:
        return None
    built = any(each.own and selfcheck.verdict(each).devices for each in library.ENGINES)
    return library.AUTOMATIC if built else library.BUILD


def _file(variant: Path) -> Path:
    """Return the file of a folder, or the first of its parts, by which llama.cpp finds the others."""
    whole = variant / "model.gguf"
    return whole if whole.exists() else next(variant.glob("model-00001-of-*.gguf"), whole)


def _choose() -> tuple[Engine | None, Verdict]:
    """Return the engine that the user prefers, else the first that runs on an accelerator, else the first that runs,
    with its verdict; or None, with the reasons of those that do not run."""
    from edgepack_runtimes.gguf import library, selfcheck

    wanted = preferred(GgufRuntime.name)
    if wanted is not None and wanted not in {engine.distribution for engine in library.ENGINES}:
        return None, selfcheck.Verdict((), reason=f"No engine for gguf is called {wanted!r}; {library.FREE}.")
    reasons: list[str] = []
    ran: list[tuple[Engine, Verdict]] = []
    for candidate in library.ENGINES:
        if wanted is not None and candidate.distribution != wanted:
            continue
        found = selfcheck.verdict(candidate)
        if found.devices:
            ran.append((candidate, found))
        elif not ran:
            reasons.append(found.reason or f"{candidate.distribution} offers no device.")
    if not ran:
        if wanted is not None:
            reasons.append(f"No other engine is tried; {library.FREE}.")
        return None, selfcheck.Verdict((), reason=" ".join(reasons))
    # An accelerator is worth more than a processor's own instructions.
    chosen, found = next((each for each in ran if each[1].devices != ("cpu",)), ran[0])
    return chosen, replace(found, reason=" ".join(reasons) or None)
