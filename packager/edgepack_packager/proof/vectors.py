"""What quantisation cost a model that embeds: the vectors of a few texts, by a variant's engine and by the source.

A report, as the loss of a model that writes is one: that the engine computes the model's states, and that the variant
is the model, the gates say. The texts are the beginning of the held-out one, cut into pieces of as many tokens, each of
which ends as the tokenizer ends a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from importlib.resources import files
from pathlib import Path

import numpy as np

from edgepack.bundle.embedding import Embedding, Nearness, VectorTest
from edgepack.pooling import cosine, matrices, pooled
from edgepack.text.tokenizer import Tokenizer
from edgepack_packager import reference
from edgepack_packager.checkpoint.weights import Float32, Weights
from edgepack_packager.progress import Progress
from edgepack_packager.proof import engine

TEXTS = 8
TOKENS = 32
_CHARACTERS = 16  # of which no tokenizer makes less than a token, in prose


class Vectors:
    """The vectors of texts by the source, and by each variant whose engine wrote its states to ``files``."""

    def __init__(
        self,
        weights: Weights,
        embedding: Embedding,
        dense: bytes,
        tokenizer: Tokenizer,
        scratch: Path,
        progress: Progress,
    ) -> None:
        self._dense = matrices(embedding, dense)
        self._weights, self._embedding, self._progress = weights, embedding, progress
        texts = _pieces(tokenizer, embedding, min(TOKENS, weights.decoder.context))
        self.files: dict[Path, Sequence[int]] = {scratch / f"vector-{at}": ids for at, ids in enumerate(texts)}

    def measure(self) -> tuple[Nearness, VectorTest]:
        """Return how near a variant's vectors are to the source's, and what a device repeats: the first of them."""
        width = self._weights.decoder.outputs
        ours = [self._vector(np.stack([*engine.rows(path, width)])) for path in self.files]
        found = [cosine(one, other) for one, other in zip(ours, self._expected, strict=True)]
        near = Nearness(texts=len(found), cosine=_digits(float(np.mean(found)), 6), least=_digits(min(found), 6))
        ids = list(next(iter(self.files.values())))
        return near, VectorTest(ids=ids, vector=[_digits(float(each), 4) for each in ours[0]])

    @cached_property
    def _expected(self) -> list[Float32]:
        self._progress.stage("Computing the source's vectors", self._weights.decoder.n_layers)
        states = reference.each(self._weights, list(self.files.values()), self._progress.advance)
        return [self._vector(one) for one in states]

    def _vector(self, states: Float32) -> Float32:
        return pooled(self._embedding, states, self._dense)


def _pieces(tokenizer: Tokenizer, embedding: Embedding, length: int) -> list[list[int]]:
    """Return texts of so many ids each, with what begins and ends one."""
    prose = files(__package__).joinpath("held-out.txt").read_text("utf-8")[: TEXTS * TOKENS * _CHARACTERS]
    begin, own = tokenizer.encode("", bos=None), tokenizer.encode(prose, bos=False)
    room = max(1, length - len(begin) - len(embedding.ends))
    starts = range(0, TEXTS * room, room)
    return [[*begin, *own[start : start + room], *embedding.ends] for start in starts if start + room <= len(own)]


def _digits(value: float, count: int) -> float:
    return float(f"{value:.{count}g}")
