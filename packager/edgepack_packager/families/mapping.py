"""Canonical tensors over a checkpoint's own: a family says which is which, this checks and reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.errors import SourceError, UnsupportedModelError
from edgepack_packager.checkpoint import Checkpoint
from edgepack_packager.checkpoint.safetensors import FLOATS
from edgepack_packager.checkpoint.weights import Float32, row_blocks


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint keeps a canonical tensor: the tensor that holds it, from its row ``first`` on.

    ``plus`` is added to every value, in float32. ``others`` are names that the tensor has in other checkpoints.
    """

    tensor: str
    first: int = 0
    plus: float = 0.0
    others: tuple[str, ...] = ()

    def among(self, stored: Collection[str]) -> Source:
        """Return the source under the name that a checkpoint uses, its first one where none is there."""
        name = next((name for name in (self.tensor, *self.others) if name in stored), self.tensor)
        return Source(name, self.first, self.plus)


class MappedWeights:
    """``Weights`` over a checkpoint.

    ``dtype`` is the type that all tensors are stored in, or "f32", which holds every value, where they are mixed.
    """

    def __init__(
        self, checkpoint: Checkpoint, decoder: Decoder, source: Callable[[Decoder, str], Source], ignored: str
    ) -> None:
        self.decoder = decoder
        self._checkpoint = checkpoint
        stored = checkpoint.tensors.keys()
        self._sources = {name: source(decoder, name).among(stored) for name, _ in decoder.tensors()}
        shapes = _stored_shapes(decoder, self._sources)
        head = source(decoder, "head").among(stored).tensor
        spare = {head} & stored if decoder.tied else set()
        _check_names(checkpoint, shapes.keys() | spare, ignored)
        for tensor, shape in shapes.items():
            _check_tensor(checkpoint, tensor, shape)
        dtypes = {checkpoint.tensors[place.tensor].dtype for place in self._sources.values()}
        self.dtype = FLOATS[dtypes.pop()] if len(dtypes) == 1 else "f32"
        if spare:
            _check_spare_head(checkpoint, decoder, self._sources["embedding"].tensor, head)

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor: float32."""
        source = self._sources[name]
        rows = self._checkpoint.rows(source.tensor, source.first + start, source.first + stop)
        return rows + np.float32(source.plus) if source.plus else rows


def _stored_shapes(decoder: Decoder, sources: Mapping[str, Source]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint, which may hold several canonical ones, row after row.

    Raises ``ValueError`` for a family whose tensors leave a row out, or say it twice.
    """
    parts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for name, shape in decoder.tensors():
        parts.setdefault(sources[name].tensor, []).append((sources[name].first, shape))
    return {tensor: _joined(tensor, sorted(pieces)) for tensor, pieces in parts.items()}


def _joined(tensor: str, parts: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
    end, columns = 0, parts[0][1][1:]
    for first, shape in parts:
        if first != end or shape[1:] != columns:
            raise ValueError(f"the family's parts of {tensor} do not follow each other: {parts}")
        end += shape[0]
    return (end, *columns)


def _check_names(checkpoint: Checkpoint, expected: Collection[str], ignored: str) -> None:
    missing = [name for name in expected if name not in checkpoint.tensors]
    if missing:
        raise SourceError(
            f"{checkpoint.folder} lacks {_some(missing)}, which its config.json asks for.",
            hint="Fetch all weight files of the model, and the config.json that belongs to them.",
        )
    unknown = [name for name in checkpoint.tensors if name not in expected and not re.fullmatch(ignored, name)]
    if unknown:
        raise SourceError(
            f"{checkpoint.folder} has {_some(unknown)}, which nothing in its config.json explains.",
            hint="Fetch the config.json that belongs to the weights; merge adapters into the weights first.",
        )


def _check_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    entry = checkpoint.tensors[name]
    if entry.shape != shape:
        raise SourceError(
            f"{checkpoint.folder}: the tensor {name} has the shape {list(entry.shape)}; "
            f"by config.json it must have {list(shape)}.",
            hint="Fetch the config.json that belongs to the weights.",
        )
    if entry.dtype not in FLOATS:
        raise UnsupportedModelError(
            f"{checkpoint.folder}: the tensor {name} is stored as {entry.dtype}; edgepack reads F32, F16 and BF16.",
            hint="Convert the original, unquantized checkpoint.",
        )


def _check_spare_head(checkpoint: Checkpoint, decoder: Decoder, embedding: str, head: str) -> None:
    """A tied model may carry its head a second time, but only as a copy of the embedding."""
    shape = (decoder.n_vocab, decoder.hidden_size)
    _check_tensor(checkpoint, head, shape)
    for start, stop in row_blocks(shape):
        if not np.array_equal(checkpoint.rows(embedding, start, stop), checkpoint.rows(head, start, stop)):
            raise SourceError(
                f"{checkpoint.folder}: config.json ties {head} to {embedding}, but the two differ.",
                hint='If the head was trained on its own, set "tie_word_embeddings" to false in config.json.',
            )


def _some(names: Collection[str]) -> str:
    first = sorted(names)[:3]
    more = f" and {len(names) - len(first)} more" if len(names) > len(first) else ""
    return f"the tensor{'s' if len(names) > 1 else ''} {', '.join(first)}{more}"
