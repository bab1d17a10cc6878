"""How much of what adapters changed outlives the quantisation.

W is a tensor before them, D what they add, Q(x) what the tensor's form keeps of x, and q = Q(W + D) - Q(W) what a
payload changes by. The projection of q on D,

    kept = (q . D) / (D . D),

is what arrives of D: 1 where all of it does, 0 where the quantisation swallows it. Weights that lie anywhere between
two levels are rounded up as much more often as D asks for: however small it is, D arrives as a whole, and what is lost
is what quantisation costs any weights. Weights that lie on the levels already, because they were trained for them or
come from a file of few bits, fall back on them: of a D below half a step nothing arrives.

    share = (q . D)^2 / ((q . q) (D . D))

is the part of q's squared length that lies along D; the rest of q is rounding that came out otherwise. It stands in the
evidence, and nobody is warned of it: rounding goes in all directions, and D in the few that a layer was taught.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.proof.costs import kept
from edgepack_packager.targets import Form, Reader, Request, Target

LEAST = 0.5
"""Of what is kept: less of a change is lost rather than kept."""

CHUNKS, CHUNK = 8, 32
"""So many rows at so many places of a tensor stand for it."""

_SUPER = 256
_GGML = (Form("q5_K", 5, 32), Form("q6_K", 6, 16), Form("q8_0", 8, 32))
_GGML_NARROW = (Form("q5_1", 5, 32), Form("q8_0", 8, 32))
_FLOATS = (Form("f16", 16), Form("f32", 32))


@dataclass(frozen=True, slots=True)
class Adapted:
    """Weights before adapters, the canonical tensors that they change, and their scales."""

    base: Weights
    tensors: Sequence[str] = ()
    scales: Sequence[float] = ()


class Outlived(msgspec.Struct, frozen=True, omit_defaults=True):
    """Of a tensor: what is kept of the change and its share, the bits of its form, and where less than ``LEAST`` is
    kept, the fewest bits that keep that much."""

    kept: float
    share: float
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
    low = {name: each for name, each in figures.items() if each.kept < LEAST}
    if not low:
        return None
    least = min(low, key=lambda name: low[name].kept)
    needs = max(each.needs or 0 for each in low.values())
    target = request.target
    wider = [scheme for scheme, bits in target.schemes.items() if bits >= needs]
    keeps = min(wider, key=lambda scheme: target.schemes[scheme], default="f32")
    return (
        f"{request.id} keeps less than half of what adapters change in {len(low)} of the {len(figures)} tensors that "
        f"they change, least in {least}, {max(0, low[least].kept):.0%}. "
        f"Quantised by {target.name}:{keeps}, all keep it."
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
    if np.array_equal(before, after):
        return None
    form = reader.form(name)
    found = _compare(form, before, after)
    if found.kept >= LEAST:
        return found
    wider = (each for each in _wider(form, before.shape[1]) if _compare(each, before, after).kept >= LEAST)
    return msgspec.structs.replace(found, needs=next(wider).bits)


def _wider(form: Form, columns: int) -> Iterator[Form]:
    """Yield what a target has of more bits for a tensor of that form; the last keeps all."""
    if form.kind in ("affine", "signed", "asymmetric"):
        wider = [replace(form, bits=8)]
    else:
        wider = [*(_GGML_NARROW if columns % _SUPER else _GGML)]
    yield from (each for each in (*wider, *_FLOATS) if each.bits > form.bits)


def _compare(form: Form, before: Float32, after: Float32) -> Outlived:
    delta = after.astype(np.float64) - before
    changed = kept(form, after).astype(np.float64) - kept(form, before)
    along, power, size = (float((a * b).sum()) for a, b in ((changed, delta), (changed, changed), (delta, delta)))
    return Outlived(along / size, along**2 / (power * size) if power else 0.0, form.bits)
