"""The reference's states of the probe, which an earlier build of the same source may have computed."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import numpy as np
from threadpoolctl import threadpool_info

from edgepack.bundle.manifest import File
from edgepack_packager import cache, reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.progress import Progress


def hidden(
    weights: Weights, files: Sequence[File], scales: Sequence[float], ids: Sequence[int], progress: Progress
) -> Float32:
    """Return ``reference.hidden`` of the ids for weights that come from these files: float32 [1, n, h].

    ``scales`` are those of the adapters among them.

    They are the states of the same files, decoder and ids, by the same code and the same kernels of BLAS: to the bit
    what would be computed. The head's logits are not kept, which are fifty times as large and a fifth of the work.
    """
    name = cache.key(
        b"hidden states",
        msgspec.json.encode([file.sha256 for file in files]),
        msgspec.json.encode(scales),
        msgspec.json.encode(weights.decoder),
        msgspec.json.encode(ids),
        msgspec.json.encode(_kernels()),
    )
    shape = 1, len(ids), weights.decoder.hidden_size
    if (kept := cache.recall(name)) is not None:
        progress.advance(weights.decoder.n_layers)
        return np.frombuffer(kept, "<f4").reshape(shape)
    states = reference.hidden(weights, ids, progress.advance)
    cache.keep(name, states.astype("<f4", copy=False).tobytes())
    return states


def _kernels() -> list[str]:
    """Return the libraries of BLAS and the processors that their kernels are made for."""
    facts = ("internal_api", "version", "architecture")
    return sorted(
        " ".join(str(one.get(name)) for name in facts) for one in threadpool_info() if one["user_api"] == "blas"
    )
