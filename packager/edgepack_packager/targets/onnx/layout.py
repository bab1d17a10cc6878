"""Where each tensor lies in ``model.onnx.data``: a pure function of the decoder and the scheme, known before any data.

An initialiser's name is the canonical name and ``.weight``, ``.scales`` or ``.zeros`` (``layers.0.mlp.up.weight``); a
bias keeps its own. Regions follow in model order, each on an ``ALIGNMENT`` boundary, the tables of each rope after
them, and last, for a KV cache of q8, the scales of its channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from edgepack.bundle.decoder import Decoder, KvCache
from edgepack.bundle.manifest import Fallback
from edgepack.bundle.rope import Rope
from edgepack_packager.targets import NO_FORMS, Forms, Written
from edgepack_packager.targets.mixture import sensitive
from edgepack_packager.targets.onnx.forms import BLOCK, FORMS, Blocks, filling

WIDE_BLOCK = 64
ALIGNMENT = 64
DATA_FILE = "model.onnx.data"
GRAPH_FILE = "model.onnx"

Element = Literal["f32", "f16", "u8"]

MIXED = "int4_mixed"
FLOATS: Mapping[str, int] = {"f32": 32, "f16": 16}
SCHEMES: Mapping[str, int] = MappingProxyType({**FLOATS, MIXED: 4, **{name: form.bits for name, form in FORMS.items()}})
ELEMENT_BYTES: Mapping[Element, int] = {"f32": 4, "f16": 2, "u8": 1}


def sizes(rows: int, columns: int) -> dict[str, int]:
    """Return the bytes of a matrix in each form whose blocks fill its rows, or end in a last one of ``BLOCK``."""
    fitting = {name: of for name, of in FORMS.items() if filling(of, columns) == of}
    scale = ELEMENT_BYTES["f32"]
    return {
        name: rows * (of.count(columns) * (of.size_bytes + scale) + of.zeros_bytes(columns))
        for name, of in fitting.items()
    }


@dataclass(frozen=True, slots=True)
class Region:
    """An initialiser in the data file: its name, element type, shape, and offset in bytes."""

    name: str
    element: Element
    shape: tuple[int, ...]
    offset: int

    @property
    def row_bytes(self) -> int:
        """Bytes from one row (index of the first dimension) to the next."""
        return math.prod(self.shape[1:]) * ELEMENT_BYTES[self.element]

    @property
    def size(self) -> int:
        """Bytes of the region."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True)
class Stored:
    """How a canonical tensor is stored: as plain numbers, or as quantised ``blocks`` and one scale for each block.

    Quantised weights are uint8 [rows, blocks, bytes of a block], scales float32 [rows, blocks]; a row whose columns
    do not fill its last block is filled up with zeros. Asymmetric blocks have ``zeros``: uint8 [rows, bytes of a row's
    zero points].
    """

    columns: int
    weight: Region
    blocks: Blocks | None = None
    scales: Region | None = None
    zeros: Region | None = None

    @property
    def regions(self) -> tuple[Region, ...]:
        """The regions, in the order of the file."""
        return tuple(region for region in (self.weight, self.scales, self.zeros) if region is not None)


@dataclass(frozen=True, slots=True)
class Layout:
    """The whole data file: canonical tensors, each rope's tables of cosine and sine, the scales of the KV cache by
    ``layers.0.attention.k``, and its bytes. ``own`` are the tensors with a form of their own.

    A table is float32 [context, rope dim / 2]; scales are float32 [1, KV heads, 1, head dimension].
    """

    scheme: str
    tensors: Mapping[str, Stored]
    tables: Mapping[Rope, tuple[Region, Region]]
    caches: Mapping[str, Region]
    size: int
    own: frozenset[str] = frozenset()

    @property
    def regions(self) -> Iterator[Region]:
        """Every region, in the order of the file."""
        for stored in self.tensors.values():
            yield from stored.regions
        for tables in self.tables.values():
            yield from tables
        yield from self.caches.values()

    @property
    def resident_bytes(self) -> int:
        """Bytes that onnxruntime takes for weights, as measured on x86-64 with a deviation below 5 %.

        Vectors and scales stay mapped from the file. The matrix of a product is repacked: as float32, or as codes,
        scales and one float32 sum for each block. The rope tables, and what layers get of a token, are touched row by
        row: tables of hundreds of megabytes of which a context needs some, and do not count.
        """
        return sum(map(_packed_bytes, self._products)) + self.loading_bytes

    @property
    def loading_bytes(self) -> int:
        """Bytes of the largest matrix, which is there twice while it is repacked.

        In its place come later the rows of the embedding that tokens touch, so that it counts as that at least.
        """
        embedding = self.tensors["embedding"]
        gathered = sum(region.size for region in embedding.regions)
        if "head" not in self.tensors and embedding.scales is not None:
            gathered = embedding.weight.size  # the head keeps the scales and zero points
        return max(gathered, *map(_source_bytes, self._products))

    @property
    def written(self) -> Written:
        """What a writer of this layout reports."""
        fallbacks = tuple(self._fallbacks)
        return Written(self.size, self.tensor_bytes, self.resident_bytes, fallbacks, self.loading_bytes)

    @property
    def _products(self) -> list[Stored]:
        """All but what is only gathered from."""
        gathered = {"inputs.embedding", *(["embedding"] if "head" in self.tensors else [])}
        return [stored for name, stored in self.tensors.items() if name not in gathered]

    @property
    def _fallbacks(self) -> Iterator[Fallback]:
        whole = FORMS.get(self.scheme)
        for name, stored in self.tensors.items():
            if whole and stored.blocks and name not in self.own and stored.blocks.size != whole.size:
                reason = f"{stored.columns} columns are not a multiple of the block of {whole.size}"
                yield Fallback(tensor=name, scheme=stored.blocks.name, reason=reason)

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the canonical tensors: no padding between regions, no rope tables."""
        return sum(region.size for stored in self.tensors.values() for region in stored.regions)


def _packed_bytes(stored: Stored) -> int:
    if stored.scales is not None:
        return stored.weight.size + 3 * stored.scales.size + (stored.zeros.size if stored.zeros else 0)
    return math.prod(stored.weight.shape) * ELEMENT_BYTES["f32"]


def _source_bytes(stored: Stored) -> int:
    """What a matrix is repacked from: the file's codes, or float32, to which f16 is converted first."""
    return stored.weight.size if stored.scales is not None else _packed_bytes(stored)


def layout(decoder: Decoder, scheme: str, kv_cache: KvCache = "f32", forms: Forms = NO_FORMS) -> Layout:
    """Return the layout of a decoder's tensors in one of ``SCHEMES``, but for those with ``FORMS`` of their own.

    Vectors (norms, biases) are always f32.
    """
    placer = _Placer()
    wide = sensitive(decoder)

    def stored(name: str, shape: tuple[int, ...]) -> Stored:
        own = FORMS[forms[name]] if name in forms else None
        return _stored(placer, name, shape, scheme, own or _blocks(shape[-1], scheme, name in wide))

    tensors = {name: stored(name, shape) for name, shape in decoder.tensors()}
    tables = {rope: _tables(placer, index, decoder.context, rope) for index, rope in enumerate(decoder.ropes)}
    caches = {
        f"layers.{layer}.attention.{part}": placer.place(
            f"layers.{layer}.attention.{part}.cache.scales", "f32", (1, attention.n_kv_heads, 1, attention.head_dim)
        )
        for layer, attention in (decoder.keeping if kv_cache == "q8" else {}).items()
        for part in ("k", "v")
    }
    return Layout(scheme, tensors, tables, caches, placer.end, frozenset(forms))


class _Placer:
    def __init__(self) -> None:
        self.end = 0

    def place(self, name: str, element: Element, shape: tuple[int, ...]) -> Region:
        region = Region(name, element, shape, -(-self.end // ALIGNMENT) * ALIGNMENT)
        self.end = region.offset + region.size
        return region


def _stored(placer: _Placer, name: str, shape: tuple[int, ...], scheme: str, blocks: Blocks | None) -> Stored:
    if len(shape) == 1:
        initializer = name if name.endswith(".bias") else f"{name}.weight"
        return Stored(1, placer.place(initializer, "f32", shape))
    rows, columns = shape
    if blocks is None:
        element: Element = "f16" if scheme == "f16" else "f32"
        return Stored(columns, placer.place(f"{name}.weight", element, shape))
    count = blocks.count(columns)
    weight = placer.place(f"{name}.weight", "u8", (rows, count, blocks.size_bytes))
    scales = placer.place(f"{name}.scales", "f32", (rows, count))
    zeros = (rows, blocks.zeros_bytes(columns))
    return Stored(
        columns, weight, blocks, scales, placer.place(f"{name}.zeros", "u8", zeros) if blocks.asymmetric else None
    )


def _blocks(columns: int, scheme: str, wide: bool) -> Blocks | None:
    """Return how a matrix is quantised under a scheme; ``wide``: where that is mixed, it takes 8 bits.

    A mixture has half the scales, each half a bit of a weight, wherever rows are multiples of the wider block.
    """
    if scheme == MIXED:
        size = BLOCK if columns % WIDE_BLOCK else WIDE_BLOCK
        return Blocks(8, size) if wide else Blocks(4, size, searched=True)
    return filling(FORMS[scheme], columns) if scheme in FORMS else None


def _tables(placer: _Placer, index: int, context: int, rope: Rope) -> tuple[Region, Region]:
    shape = (context, rope.dim // 2)
    return placer.place(f"rope.{index}.cosine", "f32", shape), placer.place(f"rope.{index}.sine", "f32", shape)
