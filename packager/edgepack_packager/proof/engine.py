"""Logits that lie in files, so that one row is in memory: an engine's, computed in a child, and the reference's.

Of a model without a head, states stand in their place, here and wherever the proof says logits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.runtime import KvCache
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof import child


@contextmanager
def logits(
    runtime: str, variant: Path, decoder: Decoder, ids: Sequence[int], kv_cache: KvCache, scratch: Path
) -> Iterator[tuple[str, Iterator[Float32]]]:
    """Yield the engine's package and its version, and an iterator over its logits: float32 [n_vocab] per id.

    The file is gone when the block ends.
    """
    with TemporaryDirectory(dir=scratch) as folder:
        output = Path(folder, "logits")
        yield run(runtime, variant, decoder, ids, kv_cache, output), rows(output, decoder.outputs)


def run(
    runtime: str,
    variant: Path,
    decoder: Decoder,
    ids: Sequence[int],
    kv_cache: KvCache,
    output: Path,
    more: Mapping[Path, Sequence[int]] = MappingProxyType({}),
) -> str:
    """Write the engine's logits of the ids to a file, and return its package and version. Raises ``EngineError``.

    ``more`` are other texts by the files that theirs go to: the engine is loaded once.
    """
    others = {str(path): list(text) for path, text in more.items()}
    return child.run(child.Job(runtime, str(variant), decoder, list(ids), kv_cache, str(output), others))


def spool(
    weights: Weights,
    ids: Sequence[int],
    paths: Mapping[Path, reference.Reading],
    progress: Callable[[], None] | None = None,
) -> None:
    """Write the reference's logits of the ids to files, one for each reading; arguments as in ``reference.hidden``.

    The weights are read once.
    """
    write_logits(weights, reference.hidden(weights, ids, progress, readings=list(paths.values())), paths)


def write_logits(weights: Weights, states: Float32, paths: Mapping[Path, reference.Reading]) -> None:
    """Write the logits of states, float32 [r, n, h], to a file for each reading: float32 [n, n_vocab].

    The head is read once: its logits come by tokens, and go to their places in the rows.
    """
    readings = list(paths.values())
    with ExitStack() as stack:
        files = [stack.enter_context(open(path, "wb")) for path in paths]
        for first, found in reference.columns(weights, states, readings):
            for file, rows in zip(files, found.astype("<f4", copy=False), strict=True):
                for position, part in enumerate(rows):
                    file.seek(4 * (position * weights.decoder.outputs + first))
                    file.write(part.tobytes())


def rows(path: Path, columns: int) -> Iterator[Float32]:
    """Yield the rows of a file of logits: float32 [columns]."""
    with open(path, "rb") as file:
        while row := file.read(columns * 4):
            yield np.frombuffer(row, "<f4")
