"""How the states of a model without a head become the vector of a text, as the manifest has it.

Plain data. ``edgepack.pooling`` computes it; what the fields mean is sentence-transformers' definition.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from edgepack.bundle.bounds import Count, Width
from edgepack.bundle.decoder import Decoder

Pooling = Literal["last", "mean", "first"]
"""What of a text's states is its vector: that of its last token, the mean of all of them, or that of its first."""

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]

DENSE_FILE = "dense.f32"
"""The matrices one after the other, row by row: float32, little-endian."""

_Id = Annotated[int, msgspec.Meta(ge=0, lt=1 << 31)]


class Dense(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A matrix that a pooled vector is multiplied with: ``rows`` elements out of ``columns``. ``DENSE_FILE`` has it."""

    rows: Width
    columns: Width


class TextIds(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A text that is embedded with the prompt of that name ("" for none), and all ids that the model reads of it."""

    prompt: str
    text: str
    ids: list[_Id]


class Embedding(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is made of a text: a prompt stands before it, and the tokens ``ends`` after it; then its states are pooled.

    ``prompts`` are texts by their names, and the one of ``default_prompt`` is taken where none is asked for. ``size``
    are the elements of a vector, which has the length 1 where it is ``normalized``; ``dense`` follow each other before
    that. ``similarity`` is what vectors are to be compared by. ``probes`` are texts with the ids that they must give.
    """

    pooling: Pooling
    size: Width
    normalized: bool
    ends: list[_Id]
    prompts: dict[str, str]
    default_prompt: str | None
    similarity: Similarity
    dense: list[Dense] = []
    probes: list[TextIds] = []

    @property
    def dense_bytes(self) -> int:
        """Bytes of the matrices that a vector is multiplied with, in the bundle and in memory."""
        return 4 * sum(each.rows * each.columns for each in self.dense)


class Nearness(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What quantisation cost: the mean and the least cosine between the vectors of a variant and the source's, over so
    many texts."""

    texts: Count
    cosine: float
    least: float


class VectorTest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Token ids, and the vector that the engine made of them, to four digits."""

    ids: list[_Id]
    vector: list[float]


def check(embedding: Embedding | None, decoder: Decoder) -> None:
    """Raise ``ValueError`` for what contradicts the decoder, or itself."""
    if (embedding is None) != (not decoder.headless):
        raise ValueError("a model embeds where it has no head, and only there - at `$.embedding`")
    if embedding is None:
        return
    size = decoder.hidden_size
    for each in embedding.dense:
        if each.columns != size:
            raise ValueError(f"{each.columns} columns do not fit {size} elements - at `$.embedding.dense`")
        size = each.rows
    if embedding.size != size:
        raise ValueError(f"{embedding.size} elements are made of {size} - at `$.embedding.size`")
    if embedding.default_prompt is not None and embedding.default_prompt not in embedding.prompts:
        raise ValueError("the default prompt is none of the prompts - at `$.embedding.default_prompt`")
