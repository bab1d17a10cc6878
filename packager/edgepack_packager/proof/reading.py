"""The proof of a GGUF source: llama.cpp reads the same model from the file as the build does.

The file is run by the engine itself, and its logits are compared with the reference's over the tensors as they were
read, dequantised: a swapped row, a lost key or a wrong scale of the reading shows here. Its vocabulary is asked for the
ids of every probe and token, as a payload's own is.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from edgepack.device.hardware import detect
from edgepack.device.limits import default_kv_cache
from edgepack.errors import EngineError, ProofError
from edgepack.isolation import probing
from edgepack.runtime import KvCache
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import targets
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.families.gguf import GgufWeights
from edgepack_packager.proof import engine, execution, tokens
from edgepack_packager.targets import Form, kv_cache
from edgepack_packager.targets.kv_cache import Cache
from edgepack_packager.text.golden import Vectors
from edgepack_packager.text.side import Text

_NAME = "gguf"


class _Stored:
    """The file's tensors, as the engine computes with them."""

    def __init__(self, weights: GgufWeights) -> None:
        self._weights = weights

    def form(self, name: str) -> Form:
        # ggml's own spelling, of whose letters all but the K of K-quants are small
        kind = self._weights.info(name).type
        return Form(f"{kind[:-1].lower()}K" if kind.endswith("_K") else kind.lower(), 0)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._weights.rows(name, start, stop)

    def cache(self, kind: KvCache) -> Cache | None:
        return {"f32": None, "f16": kv_cache.half, "q8": kv_cache.blocks}[kind]


def prove(
    weights: GgufWeights,
    text: Text,
    vectors: Vectors,
    tokenizer: Tokenizer,
    ids: Sequence[int],
    scratch: Path,
) -> str:
    """Compare the file with what was read of it, and return a sentence with the figures, for the manifest.

    Raises ``ProofError`` where llama.cpp computes or tokenises otherwise. Where it cannot run the file at all, the
    sentence says so.
    """
    support, path = probing.probe(_NAME, detect()), weights.files[0]
    if not support.devices:
        return f"{path.name} was not compared with llama.cpp, which cannot run here: {support.reason}"
    folder = scratch / "source" / path.name
    folder.mkdir(parents=True)
    _link(weights.files, folder)
    ids, logits, cache = ids[: execution.TOKENS], scratch / "source.logits", default_kv_cache("f32", support.kv_caches)
    try:
        name = engine.run(_NAME, folder, weights.decoder, ids, cache, logits)
    except EngineError as error:
        return f"{path.name} was not compared with llama.cpp: {error.message}"
    target = targets.find(_NAME)
    held = execution.against(target, _Stored(weights), weights.decoder, ids, logits, kv_cache=cache, scratch=scratch)
    if not held.passes:
        raise ProofError(
            f"{path.name} is not read as llama.cpp reads it: the logits' error is {held.value:g}, the limit is "
            f"{held.limit:.3g}.",
            hint="Build the checkpoint that it was made from, and report this, with the file's address.",
        )
    told = tokens.prove(_NAME, folder, text, vectors, tokenizer)
    same = f", and the ids of {told.figures['compared']} texts are the same" if told else ""
    return (
        f"{path.name} is read as {name} reads it: the logits' error (NMSE) on {len(ids)} tokens is {held.value:g}, the "
        f"limit is {held.limit:.3g}{same}."
    )


def _link(files: Sequence[Path], folder: Path) -> None:
    """Make links to a file, or to all parts of one, by the names that the engine looks for."""
    for number, file in enumerate(files, 1):
        place = folder / (f"model-{number:05}-of-{len(files):05}.gguf" if len(files) > 1 else "model.gguf")
        try:
            place.symlink_to(file.resolve())
        except OSError:  # Windows asks for a right that few have
            os.link(file.resolve(), place)
