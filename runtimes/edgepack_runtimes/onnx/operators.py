"""What a graph is made of, in plain data: operators, and initialisers whose numbers may lie in the data file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

F32: Final = 1
U8: Final = 2
I32: Final = 6
I64: Final = 7
BOOL: Final = 9
F16: Final = 10
BYTES: Final[Mapping[int, int]] = {F32: 4, U8: 1, I32: 4, I64: 8, F16: 2}
OPSETS: Final[Mapping[str, int]] = {"": 22, "com.microsoft": 1}
OPSETS_AT_ONCE: Final[Mapping[str, int]] = {**OPSETS, "": 23}  # the first with an attention to both sides

Attribute = int | float | bytes


@dataclass(frozen=True, slots=True)
class Node:
    """An operator, by the names of what it reads and makes; its own name is that of its first output."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute]


@dataclass(frozen=True, slots=True)
class Tensor:
    """An initialiser: its element type, its dimensions, and its values unless they lie in the data file."""

    type: int
    dims: tuple[int, ...]
    values: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True)
class Graph:
    """Operators in their order, and initialisers by name."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)

    @property
    def quantized_cache(self) -> bool:
        """Whether it has the scales of a KV cache of 8 bits, by which ``expected`` goes for every layer."""
        return any(name.endswith(".attention.k.cache.scales") for name in self.tensors)
