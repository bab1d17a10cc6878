"""What an engine computes with a KV cache of 8 bits, against the levels that it kept, and those against the rule.

A number on the edge between two levels falls to either side, as a processor orders a sum, and all that follows differs
by it: the reference is given the levels of the engine, once each of them is right.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from edgepack import snapshot
from edgepack.runtime import Session
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.targets.kv_cache import Cache, Part
from edgepack_runtimes.onnx.signature import caches_of

EDGE = 1e-3
"""How far from an edge a number may lie that falls to its other side, in levels. Sums that differ by a few units in
the last place move one of 127 levels by 1e-4."""


def logits_with_levels_of(
    session: Session, weights: Weights, ids: Sequence[int], rule: Cache, scales: Mapping[str, Float32]
) -> Float32:
    """Return the reference's logits with the levels that onnxruntime kept of ``ids``: float32 [n, n_vocab].

    Fails where a level is not that of the rule, whose ``scales`` these are, and not its neighbour over an edge.
    """
    facts = snapshot.facts("onnx", weights.decoder, "q8")
    length, payload = snapshot.unseal(session.snapshot(), facts, weights.decoder.context)
    assert length == len(ids)
    kept = {}
    for name, _, (heads, size) in caches_of(weights.decoder):
        _, layer, part = name.split(".")
        values, payload = payload[: heads * length * size], payload[heads * length * size :]
        kept[int(layer), part[0]] = np.frombuffer(values, np.int8).reshape(heads, length, size).swapaxes(0, 1)
    assert not payload

    def levels(layer: int, part: Part, x: Float32) -> Float32:
        ruled = rule(layer, part, x)
        if part not in ("k", "v"):
            return ruled
        scale = scales[f"layers.{layer}.attention.{part}"]
        found: Float32 = kept.pop((layer, part)) * scale
        assert ((found == ruled) | (np.abs(found - x) < (0.5 + EDGE) * scale)).all()
        return found

    result = reference.logits(weights, ids, cache=levels)
    assert not kept
    return result
