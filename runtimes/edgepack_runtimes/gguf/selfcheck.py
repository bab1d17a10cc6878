"""Proof that an engine runs here: a child process binds it, loads a tiny model and compares what it computes.

Run as ``python -m edgepack_runtimes.gguf.selfcheck <distribution>``. A crash of the child, such as an instruction that
the processor lacks, becomes the reason why the engine is not used; in the caller's process it would be the end of it.
A proof is remembered until the library, this code or the machine changes.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack import threads
from edgepack.device.state import circumstances, recall, remember, stamps
from edgepack.errors import EngineError, EngineMissingError
from edgepack.isolation import probing, process
from edgepack.runtime import Options
from edgepack_runtimes.gguf import abi, library, log, made
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.scratch import held

# Half of what the probe has that asks for it, so that the next engine has its turn.
_TIMEOUT_S: Final = 60
# A wrong binding gives garbage; accelerators that multiply in tf32 or f16 give 1e-7, processors 3e-15.
_NMSE: Final = 1e-5
_DECODER: Final = made.llama(n_heads=1, n_kv_heads=1, head_dim=32, mlp=32)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the selfcheck found: the devices of an engine that computes correctly, and its version; or a reason."""

    devices: tuple[str, ...]
    version: str | None = None
    reason: str | None = None


_verdicts: dict[library.Engine, Verdict] = {}
_lock = threads.lock()


def verdict(engine: library.Engine) -> Verdict:
    """Return whether the engine runs on this machine. The answer is found once per process; it never raises."""
    with _lock:
        if engine not in _verdicts:
            _verdicts[engine] = _judge(engine)
        return _verdicts[engine]


def examine(engine: library.Engine) -> Verdict:
    """Check the engine in this process. Raises ``EngineMissingError`` or ``EngineError`` where a check fails."""
    loaded = library.load(engine)
    _check_defaults(loaded.native.llama_model_default_params(), abi.MODEL_DEFAULTS)
    _check_defaults(loaded.native.llama_context_default_params(), abi.CONTEXT_DEFAULTS)
    table = np.sin(np.arange(256 * 32, dtype=np.float32)).reshape(256, 32)
    with _file(_tiny_model(table)) as path:
        if path is None:
            return Verdict(loaded.devices(), loaded.llama_version)
        session = open_session(loaded, path, _DECODER, Options(context=64, threads=1, kv_cache="f32", chunk=4))
        found, device = session.forward_all(range(6)), session.device
        session.close()
    error = _nmse(found, _expected(table, 6))
    if not error <= _NMSE:
        raise EngineError(f"{loaded.version} computes wrong logits: NMSE {error:.1e}.")
    return Verdict(tuple(dict.fromkeys((device, "cpu"))), loaded.llama_version)


@contextmanager
def _file(pieces: Iterable[bytes]) -> Iterator[Path | None]:
    """Yield the path of a file of the pieces; None where the system has no place for it at all, which must keep nobody
    from a model that could be loaded."""
    with ExitStack() as stack:
        path = None
        with suppress(OSError):
            path = stack.enter_context(held(pieces))
        yield path


def main() -> int:
    """Print the verdict on the engine named by the first argument as JSON."""
    engine = next(engine for engine in library.ENGINES if engine.distribution == sys.argv[1])
    try:
        found = examine(engine)
    except EngineError as error:
        found = Verdict((), reason=error.message)
    sys.stdout.buffer.write(msgspec.json.encode(found))
    return 0


def _judge(engine: library.Engine) -> Verdict:
    try:
        path = library.locate(engine)  # no child for what is not there
    except EngineMissingError as error:
        return Verdict((), reason=error.message)
    question = f"selfcheck of {engine.distribution}"
    now = circumstances(stamps([path, *Path(__file__).parent.glob("*.py")]))
    if known := recall(question, now, Verdict):
        return known
    found = _found(engine)
    if found.devices:
        remember(question, now, msgspec.json.encode(found))
    elif found.reason:
        log.logger.warning("%s", found.reason)  # installed, and yet passed over: never in silence
    return found


def _found(engine: library.Engine) -> Verdict:
    what = f"The selfcheck of {engine.distribution} {engine.version}"
    # A child of the probe may crash itself, unless another engine is to be tried after this one.
    expendable = bool(os.environ.get(probing.INSIDE)) and engine is library.ENGINES[-1]
    try:
        if expendable or not process.can_start():
            return examine(engine)
        answer = process.run(what, __name__, engine.distribution, timeout_s=_TIMEOUT_S)
        return msgspec.json.decode(answer, type=Verdict)
    except EngineError as error:
        return Verdict((), reason=error.message)
    except (OSError, msgspec.DecodeError) as error:
        return Verdict((), reason=f"{what} failed: {error}.")


def _check_defaults(params: object, defaults: Mapping[str, float]) -> None:
    fields: tuple[tuple[str, object], ...] = getattr(params, "_fields_")  # noqa: B009 - no such attribute for mypy
    for name, _ in fields:
        found = getattr(params, name)
        if (found or 0) != defaults.get(name, 0):
            raise EngineMissingError(
                f"The layout of {type(params).__name__} does not fit this library: {name} is {found} by default.",
                hint=f"Reinstall it with: {library.INSTALL}",
            )


def _expected(table: NDArray[np.float32], n: int) -> NDArray[np.float64]:
    """The tiny model's logits: its block adds zero, so they are RMSNorm(row of the embedding) times the embedding."""
    rows = table[:n].astype(np.float64)
    normed = rows / np.sqrt((rows**2).mean(axis=1, keepdims=True) + _DECODER.norm_eps)
    logits: NDArray[np.float64] = normed @ table.astype(np.float64).T
    return logits


def _nmse(found: NDArray[np.float32], expected: NDArray[np.float64]) -> float:
    return float(((found - expected) ** 2).sum() / (expected**2).sum())


def _tiny_model(table: NDArray[np.float32]) -> list[bytes]:
    """Return a GGUF file: one block whose matrices are zero, norms of one, and the table as tied embedding."""

    def filled(name: str, shape: Sequence[int]) -> tuple[int, list[bytes]]:
        values = table if name == "embedding" else np.full(shape, len(shape) == 1)
        return abi.GGML_TYPE_IDS["f32"], [values.astype("<f4").tobytes()]

    return made.model(_DECODER, filled)


if __name__ == "__main__":
    sys.exit(main())
