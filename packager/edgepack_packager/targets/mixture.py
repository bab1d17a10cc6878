"""Which tensors a mixture of precisions gives more bits: a rule of names and shapes alone.

docs/quality.md has the measurements behind it, docs/adr/0010-mixtures-by-shape.md the decision.
"""

from __future__ import annotations

from edgepack.bundle.decoder import Decoder

SMALL = 1_000_000_000
"""Parameters below which a model gets the whole mixture: the matrices of larger ones are so wide that more of their
rounding averages out, and its price in bytes grows with them."""


def sensitive(decoder: Decoder) -> frozenset[str]:
    """Return the canonical matrices that lose most by being rounded, for the bytes that more bits take there.

    Of every model what makes the logits, the head or the tied embedding, and the value projections where several
    query heads share one: those are small, and all that is read passes through them. Of a model below ``SMALL`` all
    embeddings and value projections, what a delta rule forgets and learns by, the down projection of every third layer,
    and the whole last layer.
    """
    if decoder.n_parameters >= SMALL:
        values = {f"layers.{layer}.attention.v" for layer, each in decoder.keeping.items() if each.shares}
        return frozenset({"head", *values} | ({"embedding"} if decoder.tied else set()))
    beginnings = "embedding", "head", f"layers.{decoder.n_layers - 1}."
    endings = ".v", "delta.a", "delta.b"
    downs = {f"layers.{layer}.mlp.down" for layer in range(2, decoder.n_layers, 3)}
    return frozenset(
        name
        for name, shape in decoder.tensors()
        if len(shape) == 2 and (name.startswith(beginnings) or name.endswith(endings) or name in downs)
    )


def next_sensitive(decoder: Decoder) -> frozenset[str]:
    """Return those that come next, of a model below ``SMALL``: its key projections and the other down projections."""
    if decoder.n_parameters >= SMALL:
        return frozenset()
    keys = {f"layers.{layer}.attention.k" for layer in decoder.keeping}
    return frozenset(keys | {f"layers.{layer}.mlp.down" for layer in range(decoder.n_layers)}) - sensitive(decoder)
