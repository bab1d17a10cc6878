"""Damage that a broken converter may do to a model's weights, and what a writer would then be fed.

Each is a function of sound ``Weights``, so that the same damage can be done to any model in any scheme.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from edgepack_packager.checkpoint.weights import Float32, Weights

Change = Callable[[Weights, str, int, int], Float32]


class Damaged:
    """``Weights`` whose rows ``change`` makes of sound ones."""

    def __init__(self, weights: Weights, change: Change) -> None:
        self._weights, self._change = weights, change
        self.decoder, self.dtype = weights.decoder, weights.dtype

    def rows(self, name: str, start: int, stop: int) -> Float32:
        return self._change(self._weights, name, start, stop)


def louder(part: str, by: float) -> Change:
    """Matrices whose name has that part are multiplied."""

    def change(weights: Weights, name: str, start: int, stop: int) -> Float32:
        rows = weights.rows(name, start, stop)
        return rows * np.float32(by) if part in name and rows.ndim == 2 else rows

    return change


def noise(share: float) -> Change:
    """Matrices with normal noise of that share of their deviation."""

    def change(weights: Weights, name: str, start: int, stop: int) -> Float32:
        rows = weights.rows(name, start, stop)
        if rows.ndim == 1:
            return rows
        random = np.random.default_rng([start, *name.encode()])
        return rows + random.normal(0, share * float(rows.std()), rows.shape).astype(np.float32)

    return change


def silent_head(part: str) -> Change:
    """The second head of a tensor of layer 1 is zero: its rows, or for "o" the columns that read it."""

    def change(weights: Weights, name: str, start: int, stop: int) -> Float32:
        rows = weights.rows(name, start, stop).copy()
        size = weights.decoder.attentions[0].head_dim
        if name == f"layers.1.attention.{part}":
            if part == "o":
                rows[:, size : 2 * size] = 0
            else:
                rows[np.arange(start, stop) // size == 1] = 0
        return rows

    return change


def swapped_layers(one: int, other: int) -> Change:
    """Two layers stand in each other's place."""
    stands = {f"layers.{one}.": f"layers.{other}.", f"layers.{other}.": f"layers.{one}."}

    def change(weights: Weights, name: str, start: int, stop: int) -> Float32:
        for prefix, instead in stands.items():
            if name.startswith(prefix):
                return weights.rows(instead + name.removeprefix(prefix), start, stop)
        return weights.rows(name, start, stop)

    return change


def swapped_blocks(weights: Weights, name: str, start: int, stop: int) -> Float32:
    """Neighbouring blocks of 32 columns stand in each other's place, in one tensor."""
    rows = weights.rows(name, start, stop)
    if name != "layers.1.mlp.up":
        return rows
    return np.ascontiguousarray(rows.reshape(len(rows), -1, 2, 32)[:, :, ::-1]).reshape(rows.shape)


def swapped_neighbours(weights: Weights, name: str, start: int, stop: int) -> Float32:
    """Neighbouring weights of a row stand in each other's place, as where the halves of a byte are swapped."""
    rows = weights.rows(name, start, stop)
    if name != "layers.1.mlp.up":
        return rows
    return np.ascontiguousarray(rows.reshape(len(rows), -1, 2)[:, :, ::-1]).reshape(rows.shape)


def interleaved_heads(weights: Weights, name: str, start: int, stop: int) -> Float32:
    """The rotary halves of q and k are neighbouring rows, in the model and not in the file's order."""
    rows = weights.rows(name, start, stop)
    if not name.endswith((".attention.q", ".attention.k")):
        return rows
    heads = rows.reshape(-1, 2, weights.decoder.attentions[0].head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(heads.swapaxes(1, 2)).reshape(rows.shape)


DAMAGE: dict[str, Change] = {
    "one layer x 1.1": louder("layers.1.", 1.1),
    "every down x 0.9": louder("mlp.down", 0.9),
    "noise of 3 %": noise(0.03),
    "all x 1.03": louder("", 1.03),
    "every v x 1.2": louder("attention.v", 1.2),
    "a head of v is zero": silent_head("v"),
    "a head of q is zero": silent_head("q"),
    "a head is not read": silent_head("o"),
    "two layers swapped": swapped_layers(1, 2),
    "blocks swapped": swapped_blocks,
    "neighbours swapped": swapped_neighbours,
    "q and k interleaved": interleaved_heads,
}


def cases() -> Iterator[tuple[str, Change]]:
    """Yield each damage with its name."""
    yield from DAMAGE.items()
