"""Which tensors a mixture of precisions gives more bits: a rule of names and shapes alone.

docs/quality.md has the measurements behind it, docs/adr/0009-mixtures-by-shape.md the decision.
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
    embeddings and value projections, and the down projections of ``is_favoured`` layers.
    """
    small = decoder.n_parameters < SMALL
    values = small or decoder.n_kv_heads < decoder.n_heads
    names = {"head"} | ({"embedding"} if small or decoder.tied else set())
    for layer in range(decoder.n_layers):
        names |= {f"layers.{layer}.attention.v"} if values else set()
        names |= {f"layers.{layer}.mlp.down"} if small and is_favoured(layer, decoder.n_layers) else set()
    return frozenset(names)


def is_favoured(layer: int, n_layers: int) -> bool:
    """Say whether a layer is of the first or the last eighth, or every third of the others.

    Source: ``use_more_bits`` in llama.cpp's src/llama-quant.cpp.
    """
    eighth = n_layers // 8
    return layer < eighth or layer >= 7 * n_layers // 8 or (layer - eighth) % 3 == 2
