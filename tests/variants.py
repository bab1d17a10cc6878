"""Variants for tests of the engines: written by a target, opened by its runtime, read back, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack.runtime import Options, Session, find
from edgepack_packager import families
from edgepack_packager.checkpoint import open_checkpoint
from edgepack_packager.checkpoint.weights import blocks
from edgepack_packager.targets import Model
from edgepack_packager.targets import find as find_target
from edgepack_packager.text import read_text


def pack(target: str, source: Path, out: Path, scheme: str) -> Decoder:
    """Write a variant of the checkpoint in ``source`` into a new folder and return its decoder."""
    out.mkdir()
    with open_checkpoint(source) as checkpoint:
        weights = families.open_model(checkpoint)
        text = read_text(source, checkpoint.config, weights.decoder)
        model = Model("tiny", weights.decoder, weights.dtype, checkpoint.config, text)
        writer = find_target(target).open(out, model, scheme)
        for name, start, stop in blocks(weights.decoder):
            writer.write(name, start, weights.rows(name, start, stop))
        writer.finish()
        return weights.decoder


def start(runtime: str, folder: Path, decoder: Decoder, **options: Any) -> Session:
    """Open a variant for 512 tokens in one thread with an f32 cache, or as ``options`` say."""
    chosen = Options(**{"context": 512, "threads": 1, "kv_cache": "f32", **options})
    return find(runtime).open(folder, decoder, chosen)


def token_ids(decoder: Decoder, count: int) -> list[int]:
    """Return random token ids of a model, the same at every call."""
    return [int(token) for token in np.random.default_rng(5).integers(0, decoder.n_vocab, count)]


def nmse(found: NDArray[Any], expected: NDArray[Any]) -> float:
    """Return sum((found - expected)^2) / sum(expected^2), in float64."""
    assert found.shape == expected.shape
    exact = expected.astype(np.float64)
    return float(np.square(found - exact).sum() / np.square(exact).sum())
