"""The loss gate: a finished variant through its engine, against the full reference, and its self-test."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Gate, SelfTest
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.proof import compare, engine
from edgepack_packager.proof.gates import gate
from edgepack_packager.proof.probe import Probe
from edgepack_packager.targets import Target

SELF_TEST_TOKENS = 32
# A likeliest token that leads by less than this (in logits) may be another one on another device.
SAFE_MARGIN = 0.5


@dataclass(frozen=True, slots=True)
class Limits:
    """What a variant may lose: KL in nats and the perplexity's ratio at most, top-1 agreement at least."""

    kl: float
    top1: float
    perplexity_ratio: float


def limits(bits: int) -> Limits:
    """Return the limits for a scheme of so many nominal bits per weight."""
    if bits == 16:
        return Limits(kl=1e-3, top1=0.97, perplexity_ratio=1.01)
    if bits >= 8:
        return Limits(kl=0.02, top1=0.9, perplexity_ratio=1.05)
    return Limits(kl=0.5, top1=0.5, perplexity_ratio=1.5)


@dataclass(frozen=True, slots=True)
class Loss:
    """What the engine said: its name, the gates, all figures for the evidence, and the device's self-test."""

    engine: str
    gates: list[Gate]
    figures: dict[str, float]
    self_test: SelfTest


def prove(
    target: Target,
    scheme: str,
    variant: Path,
    decoder: Decoder,
    probe: Probe,
    expected: Iterable[Float32],
    *,
    kv_cache: KvCache,
    scratch: Path,
) -> Loss:
    """Run the probe through the variant's engine and compare with the rows ``expected``: float32 [n_vocab] each.

    A scheme of 32 bits is exact and held to the target's limit; any other to the limits of its nominal bits, which a
    KV cache of fewer bits makes those of the exact one.
    """
    top1: list[int | None] = []

    def watch(row: Float32) -> Float32:
        if len(top1) < SELF_TEST_TOKENS:
            second, first = np.partition(row, -2)[-2:]
            top1.append(int(np.argmax(row)) if first - second >= SAFE_MARGIN else None)
        return row

    with engine.logits(target.runtime, variant, decoder, probe.ids, kv_cache, scratch) as (name, rows):
        lost = compare.difference(map(watch, rows), expected, probe.ids, probe.text)
    bits = min(target.schemes[scheme], 16 if target.kv_cache == "f16" else 32)
    if bits == 32:
        gates = [gate("loss.nmse", lost.nmse, "<=", target.nmse(decoder))]
    else:
        most = limits(bits)
        gates = [
            gate("loss.kl", lost.kl, "<=", most.kl),
            gate("loss.top1", lost.top1, ">=", most.top1),
            gate("loss.perplexity_ratio", lost.perplexity_ratio, "<=", most.perplexity_ratio),
        ]
    figures = asdict(lost)
    return Loss(name, gates, figures, SelfTest(ids=list(probe.ids[: len(top1)]), top1=top1))
