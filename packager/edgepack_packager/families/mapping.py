"""Canonical tensors over a checkpoint's own: a family says which is which, this checks and reads them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from edgepack.bundle.decoder import Decoder
from edgepack.errors import SourceError
from edgepack_packager.checkpoint import INDEX, Checkpoint, lacking
from edgepack_packager.checkpoint.files import ADAPTER
from edgepack_packager.checkpoint.safetensors import FLOATS
from edgepack_packager.checkpoint.weights import Float32, finite, row_blocks
from edgepack_packager.families import names, quantised

_ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module)\.")

Change = Callable[[int, Float32], Float32]
"""Makes of a checkpoint's rows, given the first one's number, what is to be read in their place: the same shape."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a checkpoint keeps a canonical tensor: the tensor that holds it, from its row ``first`` on.

    ``plus`` is added to every value, in float32. ``others`` are names that the tensor has in other checkpoints. With
    ``pairs`` the rows of each head, of so many, lie as rope turns them in that checkpoint: each beside its partner.
    With ``taps`` the tensor is a convolution's kernel [channels, 1, taps], and the canonical one its numbers in a row.
    With ``woven`` the heads of two tensors, of so many rows, lie by turns: those of the one whose ``first`` is 0 begin.
    """

    tensor: str
    first: int = 0
    plus: float = 0.0
    others: tuple[str, ...] = ()
    pairs: int = 0
    taps: int = 0
    woven: int = 0

    def among(self, stored: Collection[str]) -> Source:
        """Return the source under the name that a checkpoint uses, its first one where none is there."""
        name = next((name for name in self.names if name in stored), self.tensor)
        return replace(self, tensor=name, others=())

    @property
    def names(self) -> tuple[str, ...]:
        """All names that the tensor may have."""
        return (self.tensor, *self.others)


@dataclass(frozen=True, slots=True)
class Stored:
    """The tensors that a checkpoint of a decoder has, before there is one.

    ``shapes``: of each by its first name. ``firsts``: the first name by all. ``ignored`` as ``Family.IGNORED``.
    ``embedding`` and ``head`` are first names; of a tied model the head has no shape, because it is the embedding.
    """

    shapes: Mapping[str, tuple[int, ...]]
    firsts: Mapping[str, str]
    ignored: str
    embedding: str
    head: str


def stored(decoder: Decoder, source: Callable[[Decoder, str], Source], ignored: str) -> Stored:
    """Return the tensors that a family's checkpoint of a decoder has."""
    places = {name: source(decoder, name) for name, _ in decoder.tensors()}
    head = source(decoder, "head")
    firsts = {name: place.tensor for place in (*places.values(), head) for name in place.names}
    return Stored(_stored_shapes(decoder, places), firsts, ignored, places["embedding"].tensor, head.tensor)


class MappedWeights:
    """``Weights`` over a checkpoint, of which some tensors may be changed while they are read.

    ``dtype`` is the type that all tensors are stored in, or "f32", which holds every value, where they are mixed; what
    ``changes``, by first names of ``Source``, make of a tensor is float32. ``changed`` are its canonical tensors.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        decoder: Decoder,
        source: Callable[[Decoder, str], Source],
        ignored: str,
        changes: Mapping[str, Change] = MappingProxyType({}),
    ) -> None:
        self.decoder = decoder
        self._checkpoint = checkpoint
        wanted = {name: source(decoder, name) for name, _ in decoder.tensors()}
        head = source(decoder, "head")
        self._changes = {name: changes[place.tensor] for name, place in wanted.items() if place.tensor in changes}
        known = {name for place in (*wanted.values(), head) for name in place.names}
        # What the index alone has is judged by the same names.
        self._stored = names.plain([*checkpoint.tensors, *checkpoint.absent], known)
        self._sources = {name: place.among(self._stored) for name, place in wanted.items()}
        shapes = _stored_shapes(decoder, self._sources)
        needed = [self._stored[tensor] for tensor in shapes if tensor in self._stored]
        quantised.refuse(checkpoint.folder, checkpoint.config, checkpoint.tensors, needed)
        spare = head.among(self._stored).tensor if decoder.tied else None
        if spare is not None and self._stored.get(spare) not in checkpoint.tensors:
            spare = None
        self._check_names(shapes.keys() | ({spare} if spare else set()), ignored)
        for tensor, shape in shapes.items():
            _check_tensor(checkpoint, self._stored[tensor], shape)
        dtypes = {FLOATS[checkpoint.tensors[self._stored[place.tensor]].dtype] for place in self._sources.values()}
        self.dtype = dtypes.pop() if len(dtypes) == 1 else "f32"
        if spare is not None and not decoder.headless:
            embedding = self._stored[self._sources["embedding"].tensor]
            _check_spare_head(checkpoint, decoder, embedding, self._stored[spare])

    @property
    def notes(self) -> list[str]:
        """What was passed over in the checkpoint, a sentence each."""
        found = []
        if renamed := [stored for name, stored in self._stored.items() if name != stored]:
            found.append(f"The names of {len(renamed)} tensors are read as those of the model, such as {renamed[0]}.")
        if stale := sorted(self._checkpoint.absent):
            found.append(f"{INDEX} names {_some(stale)}, which no file holds and the model does not need.")
        if (self._checkpoint.folder / ADAPTER).exists():
            found.append(f"{ADAPTER} is passed over: what is built are the weights beside it, as they are.")
        if left := quantised.note(self._checkpoint.config):
            found.append(left)
        return found

    @property
    def changed(self) -> list[str]:
        return [name for name, _ in self.decoder.tensors() if name in self._changes]

    @property
    def unchanged(self) -> MappedWeights:
        """The same weights without the changes."""
        found = copy(self)
        found._changes = {}
        return found

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor: float32.

        Raises ``SourceError``, with the tensor and the row of the file, for what is not a finite number.
        """
        source = self._sources[name]
        if head := source.pairs:  # whole heads are read, of which these are some rows
            above, below = start // head * head, -(-stop // head) * head
            whole = self._rows(name, source, above, below)
            halves = whole.reshape(-1, head // 2, 2, *whole.shape[1:]).swapaxes(1, 2).reshape(whole.shape)
            return np.ascontiguousarray(halves[start - above : stop - above])
        if head := source.woven:
            above, below = start // head * head, -(-stop // head) * head
            both = self._rows(name, replace(source, first=0), 2 * above, 2 * below)
            own = both.reshape(-1, 2, head, *both.shape[1:])[:, int(source.first > 0)].reshape(-1, *both.shape[1:])
            return np.ascontiguousarray(own[start - above : stop - above])
        if taps := source.taps:  # whole channels are read
            above, below = start // taps, -(-stop // taps)
            return self._rows(name, source, above, below).reshape(-1)[start - above * taps : stop - above * taps]
        return self._rows(name, source, start, stop)

    def _rows(self, name: str, source: Source, start: int, stop: int) -> Float32:
        stored, first = self._stored[source.tensor], source.first + start
        rows = self._checkpoint.rows(stored, first, source.first + stop)
        if not finite(rows):
            raise _not_finite(self._checkpoint, stored)
        if change := self._changes.get(name):
            rows = change(first, rows)
        return rows + np.float32(source.plus) if source.plus else rows

    def _check_names(self, expected: Collection[str], ignored: str) -> None:
        """Refuse a checkpoint that lacks a tensor, or has one that would make it another model."""
        checkpoint = self._checkpoint
        for name in expected:
            if (only := self._stored.get(name, "")) in checkpoint.absent:
                raise lacking(checkpoint, only)
        held = {name: stored for name, stored in self._stored.items() if stored in checkpoint.tensors}
        unknown = [stored for name, stored in held.items() if name not in expected and not re.fullmatch(ignored, name)]
        adapters = [name for name in unknown if _ADAPTER.search(name)]
        if adapters:
            raise SourceError(
                f"{checkpoint.folder} has {_some(adapters)}: an adapter that was not merged into the weights.",
                hint="Load the model with peft, call merge_and_unload(), and save_pretrained().",
            )
        if missing := [name for name in expected if name not in held]:
            raise SourceError(
                f"{checkpoint.folder} lacks {_some(missing)}, which its config.json asks for.", hint=_missing(missing)
            )
        if unknown:
            raise SourceError(
                f"{checkpoint.folder} has {_some(unknown)}, which nothing in its config.json explains.",
                hint="Fetch the config.json that belongs to the weights; or remove the tensors, if they are no part of "
                "the model.",
            )


def _missing(names: Collection[str]) -> str:
    if all(name.startswith("lm_head.") for name in names):
        return 'If the head is the embedding, set "tie_word_embeddings" to true in config.json; else fetch all files.'
    return "Fetch all weight files of the model, and the config.json that belongs to them."


def _stored_shapes(decoder: Decoder, sources: Mapping[str, Source]) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor of the checkpoint, which may hold several canonical ones, row after row.

    Raises ``ValueError`` for a family whose tensors leave a row out, or say it twice.
    """
    parts: dict[str, list[tuple[int, tuple[int, ...]]]] = {}
    for name, shape in decoder.tensors():
        place = sources[name]
        kept = (shape[0] // place.taps, 1, place.taps) if place.taps else shape
        parts.setdefault(place.tensor, []).append((place.first, kept))
    return {tensor: _joined(tensor, sorted(pieces)) for tensor, pieces in parts.items()}


def _joined(tensor: str, parts: Sequence[tuple[int, tuple[int, ...]]]) -> tuple[int, ...]:
    end, columns = 0, parts[0][1][1:]
    for first, shape in parts:
        if first != end or shape[1:] != columns:
            raise ValueError(f"the family's parts of {tensor} do not follow each other: {parts}")
        end += shape[0]
    return (end, *columns)


def _not_finite(checkpoint: Checkpoint, stored: str) -> SourceError:
    """Return the error of a tensor with a NaN or an infinity: which rows of the file have one."""
    shape = checkpoint.tensors[stored].shape
    bad = [
        start + int(row)
        for start, stop in row_blocks(shape)
        for row in np.flatnonzero(
            ~np.isfinite(checkpoint.rows(stored, start, stop)).reshape(stop - start, -1).all(axis=1)
        )
    ]
    where = f"row {bad[0]}" if len(bad) == 1 else f"{len(bad)} rows from {bad[0]} to {bad[-1]}"
    return SourceError(
        f"{checkpoint.folder}: the tensor {stored} has a NaN or an infinity in {where}, of {shape[0]}.",
        hint="Fetch the weights again. If they are as published: rows of the embedding or the head that no token uses "
        "can be set to zero, all others are broken.",
    )


def _check_tensor(checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> None:
    entry = checkpoint.tensors[name]
    if entry.shape != shape:
        raise SourceError(
            f"{checkpoint.folder}: the tensor {name} has the shape {list(entry.shape)}; "
            f"by config.json it must have {list(shape)}.",
            hint="Fetch the config.json that belongs to the weights.",
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


def _some(tensors: Collection[str]) -> str:
    first = sorted(tensors)[:3]
    more = f" and {len(tensors) - len(first)} more" if len(tensors) > len(first) else ""
    return f"the tensor{'s' if len(tensors) > 1 else ''} {', '.join(first)}{more}"
