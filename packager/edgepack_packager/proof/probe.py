"""The token ids that the proof runs: real text through the bundle's own tokenizer, then a seeded random part."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager.text.golden import Vectors

TEXT_TOKENS = 160
TOKENS = 320

RUN = 192
"""Of them, what whole variants run: the text, and some of the random ids, of which a trained model has no opinion. All
rows of the embedding are held by the tensor gates, and what a position or a window changes by the structure's slice,
which runs all."""

SEED = 20240


@dataclass(frozen=True, slots=True)
class Probe:
    """Token ids; the first ``text`` of them come from prose, so that only there a perplexity means something."""

    ids: tuple[int, ...]
    text: int

    def first(self, count: int) -> Probe:
        """Return the probe that ends after so many ids."""
        return Probe(self.ids[:count], min(self.text, count))


def calibration(decoder: Decoder, vectors: Vectors) -> tuple[int, ...]:
    """Return ids that are not the probe's, in which an application's prompts begin: the chat template's goldens, then
    the tokenizer's probes, then random ones, ``TOKENS`` in all or as many as the context holds."""
    length = min(TOKENS, decoder.context)
    goldens = vectors.chat.goldens if vectors.chat else []
    told = [i for ids in (*(g.ids for g in goldens), *(p.ids for p in vectors.probes)) for i in ids or []]
    random = np.random.default_rng(SEED + 1).integers(0, decoder.n_vocab, length)
    return (*told[: length // 2], *(int(i) for i in random))[:length]


def make(decoder: Decoder, tokenizer: Tokenizer | None, tokens: int = TOKENS) -> Probe:
    """Return so many ids, or as many as the model's context holds, the same for the same decoder and tokenizer.

    Without a tokenizer all of them are random. The random part covers rows of the embedding that prose never meets.
    """
    length = min(tokens, decoder.context)
    prose: list[int] = []
    if tokenizer is not None:
        text = files(__package__).joinpath("probe.txt").read_text("utf-8")
        prose = tokenizer.encode(text)[: min(TEXT_TOKENS, length // 2)]
    random = np.random.default_rng(SEED).integers(0, decoder.n_vocab, length - len(prose))
    return Probe((*prose, *(int(i) for i in random)), len(prose))
