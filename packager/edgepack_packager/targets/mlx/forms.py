"""The forms that MLX packs a matrix in, by name: "4bit" is 4 bits in groups of 64, "5bit_g32" 5 in groups of 32."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

GROUP = 64
"""Weights that share a scale and a bias, neighbours in a row, where a name says nothing of them."""

BITS = (2, 3, 4, 5, 6, 8)
GROUPS = (GROUP, 32, 128)
"""What mlx's kernels take (mlx/ops.cpp, ``quantize``)."""


@dataclass(frozen=True, slots=True)
class Affine:
    """Levels of so many bits, and how many weights share the scale and the bias that they are multiplied with."""

    bits: int
    group: int = GROUP

    @property
    def name(self) -> str:
        """The name of the scheme that has all matrices so."""
        return f"{self.bits}bit" if self.group == GROUP else f"{self.bits}bit_g{self.group}"


FORMS: Mapping[str, Affine] = MappingProxyType(
    {form.name: form for form in (Affine(bits, group) for group in GROUPS for bits in BITS)}
)


def form(name: str) -> Affine | None:
    """Return the form of a name, None where it is none; "4bit_g64" is another name for "4bit"."""
    return FORMS.get(name.removesuffix(f"_g{GROUP}"))
