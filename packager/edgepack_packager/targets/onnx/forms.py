"""The forms that ONNX packs a matrix in, by name: "int4" is 4 bits in blocks of 32, "int8_b128" 8 in blocks of 128,
"int4_b64_asym" 4 in asymmetric blocks of 64, each of which has a zero point beside its scale."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

BLOCK = 32
"""Columns that share a scale, where a name says nothing of them."""

BITS = (2, 4, 8)
SIZES = (BLOCK, 64, 128)
"""What onnxruntime's MatMulNBits and GatherBlockQuantized both take on a CPU, from 1.27 on."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a matrix is quantised: the bits of a code, the columns of a block, which share a scale, and whether that
    scale is searched for or follows from the block's largest element.

    ``asymmetric``: a block has a zero point as well, the code that stands for 0, which else is the middle one.
    """

    bits: int
    size: int = BLOCK
    searched: bool = False
    asymmetric: bool = False

    @property
    def name(self) -> str:
        """The name of the scheme that has all matrices so."""
        size = "" if self.size == BLOCK else f"_b{self.size}"
        return f"int{self.bits}{size}{'_asym' if self.asymmetric else ''}"

    @property
    def size_bytes(self) -> int:
        """Bytes of a block's codes."""
        return self.size * self.bits // 8

    def count(self, columns: int) -> int:
        """Return how many blocks hold a row."""
        return -(-columns // self.size)

    def zeros_bytes(self, columns: int) -> int:
        """Return the bytes of a row's zero points, which have the bits of a code."""
        return -(-self.count(columns) * self.bits // 8) if self.asymmetric else 0


# Of 4 and 8 bits the plain scale, so that bytes are onnxruntime's own; of 2 bits it makes nonsense of most weights.
# A zero point saves an eighth of the error of 4 bits; of 8 bits nothing that tells.
_EVERY = [
    *(Blocks(bits, size, searched=bits == 2) for size in SIZES for bits in BITS),
    *(Blocks(4, size, asymmetric=True) for size in SIZES),
]
FORMS: Mapping[str, Blocks] = MappingProxyType({form.name: form for form in _EVERY})


def form(name: str) -> Blocks | None:
    """Return the form of a name, None where it is none; "int4_b32" is another name for "int4"."""
    return FORMS.get(name.replace(f"_b{BLOCK}", ""))


def filling(form: Blocks, columns: int) -> Blocks:
    """Return the form whose blocks fill a row: that one, or a narrower; where none does, that of ``BLOCK``."""
    narrower = sorted((size for size in SIZES if size < form.size), reverse=True)
    return form if columns % form.size == 0 or not narrower else filling(replace(form, size=narrower[0]), columns)
