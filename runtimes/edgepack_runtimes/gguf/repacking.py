"""The trial of rearranged weights: a child process computes with a small model as it is stored, and rearranged.

Run as ``python -m edgepack_runtimes.gguf.repacking <distribution>``. What a crash of it means, ``repacked`` says.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from edgepack.errors import EngineError
from edgepack.isolation import process
from edgepack.runtime import Options
from edgepack_runtimes.gguf import abi, library, made, repacked
from edgepack_runtimes.gguf.load import open_session
from edgepack_runtimes.scratch import held

# Other kernels round the activations otherwise. One that reads the weights in another order gives about 1.
_NMSE: Final = 1e-3
_Q4_0: Final = 2  # enum ggml_type
_BLOCK: Final = np.dtype([("scale", "<f2"), ("codes", "u1", 16)])  # of 32 weights
# Every width is one that llama.cpp has another form for, on x86 and on ARM.
_DECODER: Final = made.llama(n_heads=4, n_kv_heads=4, head_dim=64, mlp=512)
_STEP: Final = 37
"""The tokens of the first step: two tiles and more of a processor that multiplies tiles, and more than whole fours."""


def examine(engine: library.Engine) -> repacked.Trial:
    """Try the engine in this process, which may be the end of it. Raises ``OSError`` where there is no place for a
    model, and ``EngineError`` where the engine does not load one at all."""
    loaded = library.load(engine)
    repacked.risk(engine)
    with held(made.model(_DECODER, _filled)) as path:
        stored = _logits(loaded, path, repack=False)
        try:
            found = _logits(loaded, path, repack=True)
        except EngineError as error:
            return repacked.Trial(error.message)
    nmse = float(((found - stored) ** 2).sum() / (stored**2).sum())
    return repacked.Trial(None if nmse <= _NMSE else f"its trial gives wrong logits, NMSE {nmse:.1e}.")


def main() -> int:
    """Print what came of the trial of the engine named by the first argument, as JSON."""
    output = process.answering()
    engine = next(engine for engine in library.ENGINES if engine.distribution == sys.argv[1])
    output.write(msgspec.json.encode(examine(engine)))
    output.close()
    return 0


def _logits(loaded: library.Library, path: Path, *, repack: bool) -> NDArray[np.float64]:
    """Return the logits of a prompt and of one more token: kernels differ between several tokens and one."""
    options = Options(context=64, threads=1, kv_cache="f32", chunk=_STEP, repack=repack)
    session = open_session(loaded, path, _DECODER, options)
    try:
        return session.forward_all(range(_STEP + 1)).astype(np.float64)
    finally:
        session.close()


def _filled(_: str, shape: Sequence[int]) -> tuple[int, list[bytes]]:
    """Return norms of one, and matrices of q4_0 in which no two blocks are alike."""
    if len(shape) == 1:
        return abi.GGML_TYPE_IDS["f32"], [np.ones(shape, "<f4").tobytes()]
    blocks = np.zeros(math.prod(shape) // 32, _BLOCK)
    waves = np.sin(np.arange(blocks.size * 17, dtype=np.float64) ** 2).reshape(-1, 17)
    blocks["scale"] = 0.01 * (1.5 + waves[:, 0])
    blocks["codes"] = (waves[:, 1:] + 1) * 127.5
    return _Q4_0, [blocks.tobytes()]


if __name__ == "__main__":
    sys.exit(main())
