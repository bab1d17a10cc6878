"""How much of what adapters changed outlives the quantisation.

W is a tensor before them, D what they add, Q(x) what the tensor's form keeps of x. What a payload says of D is the
difference q = Q(W + D) - Q(W): D, and besides it roundings that come out otherwise. Where D is far below the step
between two levels, few weights change their level, each by a whole step.

    share = (q . D)^2 / ((q . q) (D . D))

is the squared length of q's projection on D over that of q: 1 where the payload changes by D alone, 1/2 where it
changes as much by rounding, 0 where no weight changes its level. The plain coefficient (q . D) / (D . D) would not
tell: weights that lie anywhere between two levels round D up as often as its size asks for, and it is 1 on average at
any width. It is kept in the evidence as ``arrived``, because on weights that lie on the levels already, as after a
training for them, it is 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np

from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof.costs import kept
from edgepack_packager.targets import Form, Reader, Request, Target

LEAST = 0.5
"""Of the share: as much of what a payload changed by is rounding as is the adapters'."""

CHUNKS, CHUNK = 8, 32
"""So many rows at so many places of a tensor stand for it."""

_LADDER: tuple[Form, ...] = (
    *(Form("affine", bits, 32) for bits in (3, 4, 5, 6, 8)),
    Form("f16", 16),
    Form("f32", 32),
)
"""Forms by their bits, which stand for those of any target."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """Weights before adapters, the canonical tensors that they change, and their scales."""

    base: Weights
    tensors: Sequence[str] = ()
    scales: Sequence[float] = ()


class Outlived(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a tensor: the share of the change that is the adapters', how much of theirs arrived on average, the bits that
    it is stored in, and where the share is below ``LEAST`` the fewest that would keep that much."""

    share: float
    arrived: float
    bits: int
    needs: int | None = None


def measure(target: Target, variant: Path, adapted: Adapted, weights: Weights) -> dict[str, Outlived]:
    """Return the figures of each tensor that adapters change, in model order; of one that they leave as it was, none.

    Raises ``BuildError`` for a file that cannot be read back.
    """
    with closing(target.read(variant, weights.decoder)) as reader:
        found = ((name, _measure(reader, name, *_sample(name, adapted.base, weights))) for name in adapted.tensors)
        return {name: figures for name, figures in found if figures is not None}


def remark(request: Request, figures: dict[str, Outlived]) -> str | None:
    """Return a sentence on the tensors that keep less than ``LEAST``, and on what would keep them; None without any."""
    low = {name: each for name, each in figures.items() if each.share < LEAST}
    if not low:
        return None
    least = min(low, key=lambda name: low[name].share)
    needs = max(each.needs or 0 for each in low.values())
    target = request.target
    wider = [scheme for scheme, bits in target.schemes.items() if bits >= needs]
    keeps = min(wider, key=lambda scheme: target.schemes[scheme], default="")
    return (
        f"{request.id}: in {len(low)} of the {len(figures)} tensors that adapters change, quantisation changes more "
        f"than they do; least of them is left in {least}, {low[least].share:.2g} of the change. {needs} bits keep it: "
        f"--quant {target.name}:{keeps}"
    )


def _sample(name: str, base: Weights, weights: Weights) -> tuple[Float32, Float32]:
    """Return the same rows of a tensor before and after, float32 [n, columns]; a vector is one row."""
    shape = dict(weights.decoder.tensors())[name]
    before, after = (
        np.concatenate([each.rows(name, start, stop) for start, stop in _spots(shape[0], len(shape) == 1)])
        for each in (base, weights)
    )
    return np.atleast_2d(before), np.atleast_2d(after)


def _spots(rows: int, vector: bool) -> Iterator[tuple[int, int]]:
    if vector or rows <= CHUNKS * CHUNK:
        yield 0, rows
        return
    for spot in range(CHUNKS):
        start = spot * (rows - CHUNK) // (CHUNKS - 1)
        yield start, start + CHUNK


def _measure(reader: Reader, name: str, before: Float32, after: Float32) -> Outlived | None:
    form = reader.form(name)
    delta = after.astype(np.float64) - before
    if not delta.any():
        return None
    share, arrived = _share(form, before, after)
    if share >= LEAST:
        return Outlived(share, arrived, form.bits)
    needs = next(f.bits for f in _LADDER if f.bits > form.bits and _share(f, before, after)[0] >= LEAST)
    return Outlived(share, arrived, form.bits, needs)


def _share(form: Form, before: Float32, after: Float32) -> tuple[float, float]:
    delta = after.astype(np.float64) - before
    changed = kept(form, after).astype(np.float64) - kept(form, before)
    along, power, size = (float((a * b).sum()) for a, b in ((changed, delta), (changed, changed), (delta, delta)))
    return (along**2 / (power * size) if power else 0.0), along / size
