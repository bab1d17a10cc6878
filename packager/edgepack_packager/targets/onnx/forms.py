"""The forms that ONNX packs a matrix in, by name: "int4" is 4 bits in blocks of 32, "int8_b128" 8 in blocks of 128."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

BLOCK = 32
"""Columns that share a scale, where a name says nothing of them."""

BITS = (2, 4, 8)
SIZES = (BLOCK, 64, 128)
"""What onnxruntime's MatMulNBits and GatherBlockQuantized both take on a CPU, from 1.27 on."""


@dataclass(frozen=True, slots=True)
class Blocks:
    """How a matrix is quantised: the bits of a code, the columns of a block, which share a scale, and whether that
    scale is searched for or follows from the block's largest element."""

    bits: int
    size: int = BLOCK
    searched: bool = False

    @property
    def name(self) -> str:
        """The name of the scheme that has all matrices so."""
        return f"int{self.bits}" if self.size == BLOCK else f"int{self.bits}_b{self.size}"

    @property
    def size_bytes(self) -> int:
        """Bytes of a block's codes."""
        return self.size * self.bits // 8

    def count(self, columns: int) -> int:
        """Return how many blocks hold a row."""
        return -(-columns // self.size)


# Of 4 and 8 bits the plain scale, so that bytes are onnxruntime's own; of 2 bits it makes nonsense of most weights.
FORMS: Mapping[str, Blocks] = MappingProxyType(
    {form.name: form for form in (Blocks(bits, size, searched=bits == 2) for size in SIZES for bits in BITS)}
)


def form(name: str) -> Blocks | None:
    """Return the form of a name, None where it is none; "int4_b32" is another name for "int4"."""
    return FORMS.get(name.removesuffix(f"_b{BLOCK}"))
