"""Where each tensor lies in a GGUF file: order, types, offsets. Computed from a decoder's shapes alone.

Source of the placement: the GGUF specification (ggml's docs/gguf.md).
"""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.bundle.decoder import Decoder
from edgepack.bundle.manifest import Fallback
from edgepack_packager.checkpoint.gguf.names import Part
from edgepack_packager.targets import NO_FORMS, Forms, Written
from edgepack_packager.targets.gguf.recipe import FORMATS, Kind, choices
from edgepack_packager.targets.gguf.tensors import parts, tables

ALIGNMENT = 32


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor in the file, or rows of one: its name, shape with the rows first, type, and place relative to the
    data's start. ``stated`` as in ``names.Part``, and of a canonical one its ``part``."""

    name: str
    shape: tuple[int, ...]
    kind: Kind
    offset: int
    stated: tuple[int, ...] | None = None
    part: Part | None = None

    @property
    def row_bytes(self) -> int:
        """Bytes of a row; of a vector, of an element."""
        return FORMATS[self.kind].row_bytes(self.shape[1] if len(self.shape) == 2 else 1)

    @property
    def size(self) -> int:
        """Bytes, without the padding that follows."""
        return self.shape[0] * self.row_bytes


@dataclass(frozen=True, slots=True)
class Layout:
    """All tensors in the order of the file, the rows of them that hold each canonical tensor, and what fell back."""

    tensors: tuple[Tensor, ...]
    canonical: dict[str, Tensor]
    fallbacks: tuple[Fallback, ...]

    @property
    def written(self) -> Written:
        """What a writer of this layout reports; llama.cpp keeps the tensors as they are in the file."""
        canonical = sum(tensor.size for tensor in self.canonical.values())
        return Written(self.data_bytes, canonical, sum(tensor.size for tensor in self.tensors), self.fallbacks)

    @property
    def data_bytes(self) -> int:
        """Bytes of the file's data section, padding included."""
        last = self.tensors[-1]
        return padded(last.offset + last.size)


def place(decoder: Decoder, scheme: str, forms: Forms = NO_FORMS, calibrated: bool = False) -> Layout:
    """Lay out a decoder's tensors under a scheme, ``calibrated`` or not, but for those with forms of their own.

    Pure, and quick: shapes and types are all that it reads.

    Raises ``UnsupportedModelError`` for a decoder that no architecture computes.
    """
    tensors: dict[str, Tensor] = {}
    canonical: dict[str, Tensor] = {}
    fallbacks: list[Fallback] = []
    end = 0

    def add(name: str, shape: tuple[int, ...], kind: Kind, stated: tuple[int, ...] | None = None) -> None:
        nonlocal end
        tensors[name] = Tensor(name, shape, kind, end, stated)
        end = padded(end + tensors[name].size)

    for name, values in tables(decoder).items():
        add(name, values.shape, "f32")
    places = parts(decoder)
    for choice in choices(decoder, scheme, forms, calibrated):
        part = places[choice.tensor]
        if part.name not in tensors:
            add(part.name, part.shape, choice.kind, part.stated)
        whole = tensors[part.name]
        canonical[choice.tensor] = Tensor(part.name, choice.shape, whole.kind, whole.offset, part=part)
        if choice.fallback:
            fallbacks.append(choice.fallback)
    return Layout(tuple(tensors.values()), canonical, tuple(fallbacks))


def padded(size: int) -> int:
    """Round up to the file's alignment."""
    return -(-size // ALIGNMENT) * ALIGNMENT
