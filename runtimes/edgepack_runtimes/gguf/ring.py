"""The cells of llama.cpp's cache for layers with a window: a ring, in which a token's cell follows from its position.

A token takes the next cell that is empty or whose token no window sees any more. Removed tokens send that search back,
but only to the first cell that became empty: where they lay on both sides of the ring's beginning, what comes next
would lie elsewhere than without them. Attention adds up cells in their order, so that its last bits depend on it. Then,
and after a restore, what is left is put back into the cells that are its own: ``rearranged``.

(llama_kv_cache::find_slot, seq_rm, state_write and state_read of the bound versions.)
"""

from __future__ import annotations

import math
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_HEAD: Final = struct.Struct("<IiII")  # a magic number, the sequence, streams, cells
_CELL: Final = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_LAYERS: Final = struct.Struct("<II")  # whether values are transposed, layers
_MORE: Final = (0, 8)  # bytes that follow these: in llama.cpp 0.6.0-dev there are two numbers more
_ROWS: Final = struct.Struct("<iQ")  # an element type, bytes of a cell
_COLUMNS: Final = struct.Struct("<iII")  # an element type, bytes of an element, elements of a cell


@dataclass(frozen=True, slots=True)
class Ring:
    """A ring of ``cells`` cells, for tokens that see the last ``window``, their own included."""

    window: int
    cells: int

    def oldest_seen(self, length: int) -> int:
        """Return the first position that the token after ``length`` others sees."""
        return max(0, length - self.window + 1)

    def is_crossed(self, length: int, end: int) -> bool:
        """Whether the positions from ``length`` to ``end`` lie on both sides of the ring's beginning."""
        return length < (end - 1) // self.cells * self.cells

    def positions(self, length: int) -> NDArray[np.int32]:
        """Return whose the cells are after ``length`` tokens, in order, so that the next one finds its own: int32.

        It is searched from the cell after the last of these on. That is the right one where they end with the newest;
        and where they are all cells, as the window then sees what lies before the right one.
        """
        newest = (length - 1) % self.cells + 1
        cells = np.arange(newest if newest >= self.window else self.cells, dtype=np.int32)
        found = cells + length - newest - np.where(cells < newest, 0, self.cells).astype(np.int32)
        return found[found >= 0]


def rearranged(state: Bytes, positions: NDArray[np.int32]) -> Bytes | None:
    """Return the state of a ring with its cells in the order of these positions, None where it is none.

    Cells of positions that the state lacks are copies of others: they must be hidden from what comes next.
    """
    for more in _MORE:
        with suppress(struct.error, ValueError, OverflowError):
            return _rearranged(state.data, positions, more)
    return None


def _rearranged(state: memoryview, positions: NDArray[np.int32], more: int) -> Bytes:
    *head, count = _HEAD.unpack_from(state)
    if not count:
        raise ValueError("no cell is taken")
    cells = np.frombuffer(state, _CELL, count, _HEAD.size)
    order = np.argsort(cells["position"])
    taken = order[np.searchsorted(cells["position"], positions, sorter=order).clip(max=count - 1)]
    moved = cells[taken]
    moved["position"] = positions
    at = _HEAD.size + cells.nbytes
    transposed, layers = _LAYERS.unpack_from(state, at)
    parts = [_HEAD.pack(*head, len(positions)), moved.tobytes(), state[at : at + _LAYERS.size + more].tobytes()]
    at += _LAYERS.size + more
    for values in (False, True):
        for _ in range(layers):
            kind = _COLUMNS if values and transposed else _ROWS
            _, size, *rows = kind.unpack_from(state, at)
            parts.append(state[at : at + kind.size].tobytes())
            at += kind.size
            block = np.frombuffer(state, np.uint8, count * size * math.prod(rows), at).reshape(*rows, count, size)
            parts.append(block[..., taken, :].tobytes())
            at += block.nbytes
    if at != len(state):
        raise ValueError(f"{len(state) - at} bytes are left of a state of {count} cells")
    return np.frombuffer(b"".join(parts), np.uint8)
