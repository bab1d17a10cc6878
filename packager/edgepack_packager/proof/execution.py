"""The engine gate: does the engine compute what the variant says?

The variant's logits by its engine are compared with those of the reference over the variant's own weights, read back
and dequantised: what quantisation cost stands on both sides, and what differs is the engine's doing. It may differ by
what a sound engine does otherwise than the reference, and by no more: it rounds the activations to 8 bits (or to half
precision) before it multiplies them with quantised (or half) matrices, and it may keep its KV cache in half precision
or in 8 bits. How much that costs depends on the model, from 2e-5 to 4e-3 as a mean square; the reference that rounds at
the same places says how much on this one. An engine that rounds nothing is held to the limit of an exact variant.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Protocol

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Gate
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import compare, engine
from edgepack_packager.proof.costs import to_float
from edgepack_packager.proof.gates import gate
from edgepack_packager.reference import EXACT, Reading
from edgepack_packager.targets import Activations, Form, Target
from edgepack_packager.targets.kv_cache import Cache

TOKENS = 64
"""Of the probe, from its beginning: enough to tell a fault from rounding, for two readings of the whole model."""

ROUNDED = 2.0
"""Times what rounding costs the reference, as a mean square; measured: 0.7 to 1.5, whatever the model and scheme."""


class Stored(Protocol):
    """What an engine ran: how a file stores each canonical tensor, its values, and what a KV cache rounds."""

    def form(self, name: str) -> Form: ...

    def rows(self, name: str, start: int, stop: int) -> Float32: ...

    def cache(self, kind: KvCache) -> Cache | None: ...


class ReadBack:
    """The ``Weights`` that a finished variant holds, dequantised."""

    dtype = "f32"

    def __init__(self, decoder: Decoder, reader: Stored) -> None:
        self.decoder, self._reader = decoder, reader

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows of a canonical tensor: float32."""
        return self._reader.rows(name, start, stop)


def exact(target: Target, decoder: Decoder, logits: Path, expected: Path) -> Gate:
    """Hold the engine's ``logits`` to ``expected``, for a variant of f32 with a KV cache of f32: it is its source.

    Both are files of float32 [n_vocab] for each id of the probe.
    """
    found = compare.nmse(engine.rows(logits, decoder.outputs), engine.rows(expected, decoder.outputs))
    return gate("engine.nmse", found, "<=", target.nmse(decoder))


def prove(
    target: Target,
    variant: Path,
    decoder: Decoder,
    ids: Sequence[int],
    logits: Path,
    *,
    kv_cache: KvCache,
    scratch: Path,
) -> Gate:
    """Compare the engine's ``logits`` of the ids, with that KV cache, with the reference's over the variant's weights.

    ``logits`` is a file of float32 [n_vocab] for each id.
    """
    with closing(target.read(variant, decoder)) as reader:
        return against(target, reader, decoder, ids, logits, kv_cache=kv_cache, scratch=scratch)


def against(
    target: Target,
    reader: Stored,
    decoder: Decoder,
    ids: Sequence[int],
    logits: Path,
    *,
    kv_cache: KvCache,
    scratch: Path,
) -> Gate:
    """As ``prove``, over the weights that a reader gives, of a file that the engine of ``target`` ran."""
    own = ReadBack(decoder, reader)
    ids = ids if decoder.at_once else ids[:TOKENS]  # where later ones are seen, the first are not alone

    columns = decoder.outputs

    def rounding(name: str, inputs: Float32) -> Float32:
        return rounded(inputs, target.activations(reader.form(name)))

    said, other = scratch / "own", scratch / "rounded"
    readings = {said: EXACT}
    cache = reader.cache(kv_cache)
    if cache or any(target.activations(reader.form(name)) != "f32" for name, _ in decoder.tensors()):
        readings[other] = Reading(cache, rounding)
    engine.spool(own, ids, readings)
    cost = compare.nmse(engine.rows(other, columns), engine.rows(said, columns)) if other in readings else 0.0
    found = compare.nmse(islice(engine.rows(logits, columns), len(ids)), engine.rows(said, columns))
    return gate("engine.nmse", found, "<=", target.nmse(decoder) + ROUNDED * cost)


def rounded(x: Float32, to: Activations) -> Float32:
    """Return the values that a type has for ``x`` [n, columns]; a number stands for blocks of 8 bits."""
    return _in_bytes(x, to) if isinstance(to, int) else to_float(to, x)


def _in_bytes(x: Float32, block: int) -> Float32:
    n, columns = x.shape
    blocks = np.pad(x, ((0, 0), (0, -columns % block))).reshape(n, -1, block)
    scales = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127)
    steps = np.divide(blocks, scales, out=np.zeros_like(blocks), where=scales > 0)
    result: Float32 = (np.rint(steps) * scales).reshape(n, -1)[:, :columns]
    return result
