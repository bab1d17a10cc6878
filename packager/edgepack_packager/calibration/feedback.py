"""What errors are made good by (``targets.feedback``), from the second moments of what a text multiplies matrices with.

They are kept in a folder: those of all layers would not fit in memory. Sums, and the factors made of them, have one
order (``arithmetic.repeatable``).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from edgepack.bundle.decoder import Decoder
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.targets.feedback import Feedback, Part, pack
from edgepack_packager.targets.feedback import size as packed_size

WIDTH = 2048
"""Columns of a part at most: of a wider matrix, moments between columns of two parts are not kept."""

DAMP = 1.0
"""Of each column's own moment, what is added to it: some thousand tokens say more of themselves than of others what is
between two columns."""

LEAST: Final = 2.0**-10
"""Of the mean, what a column's own moment is taken for at least there."""

LOUDEST: Final = np.float32(300)
"""Of a text's median, what the squared inputs of one of its tokens count at most. Those of a text's first token are
300,000 times as large in a layer of SmolLM2: to make its errors good cost all other tokens six times what they lose."""

_SHARED: Final = {"k": "q", "v": "q", "up": "gate", "z": "qkv", "a": "qkv", "b": "qkv"}
"""Matrices that are multiplied with what another of their block is multiplied with."""


class Moments:
    """The factors of the matrices ``names``, made in ``folder`` of the inputs that ``see`` is shown, layer by layer."""

    def __init__(self, folder: Path, names: Collection[str]) -> None:
        folder.mkdir()
        self._found: dict[str, Feedback] = {}
        self._folder, self._names = folder, names
        self._keys = {key(name) for name in names}
        self._layer = ""
        self._sums: dict[str, list[Float32]] = {}

    def see(self, name: str, inputs: Float32) -> None:
        """Take what a matrix is multiplied with: float32 [n, columns], for each text in turn, layer after layer."""
        from edgepack_packager.arithmetic.repeatable import REPEATABLE

        if name not in self._keys:
            return
        layer = ".".join(name.split(".")[:2])
        if layer != self._layer:
            self._make()
            self._layer = layer
        places, inputs = list(parts(inputs.shape[1])), softened(inputs)
        if name not in self._sums:
            self._sums[name] = [np.zeros((len(place), len(place)), np.float32) for place in places]
        for place, sums in zip(places, self._sums[name], strict=True):
            REPEATABLE.add_moments(inputs[:, place.start : place.stop], sums)

    def finish(self) -> dict[str, Feedback]:
        """Return the feedback of each matrix, by its canonical name; one whose moments are beyond float32 has none."""
        self._make()
        return self._found

    def _make(self) -> None:
        for name, sums in self._sums.items():
            if all(np.isfinite(each.diagonal()).all() for each in sums):
                made = list(self._parts(name, sums))
                self._found |= {each: made for each in self._names if key(each) == name}
        self._sums.clear()

    def _parts(self, name: str, sums: list[Float32]) -> Iterator[Part]:
        for place, each in zip(parts(sum(map(len, sums))), sums, strict=True):
            order, factor = factors(each)
            path = self._folder / f"{name}.{place.start}"
            pack(factor).astype("<u2").tofile(path)
            yield Part(place.start + order, Kept(path))


@dataclass(frozen=True, slots=True)
class Kept:
    """Numbers in a file, of which some are read at a time: mapped, all that were read would count as memory."""

    path: Path

    def __getitem__(self, place: slice, /) -> NDArray[np.uint16]:
        """Return a stretch of them: uint16 [n]."""
        return np.fromfile(self.path, "<u2", place.stop - place.start, offset=2 * place.start)


def softened(inputs: Float32) -> Float32:
    """Return what a text multiplies a matrix with, float32 [n, columns], with no token louder than ``LOUDEST``."""
    from edgepack_packager.arithmetic.repeatable import REPEATABLE

    power = REPEATABLE.total(np.square(inputs))
    least = np.maximum(power, np.finfo(np.float32).tiny)
    found: Float32 = inputs * np.sqrt(np.minimum(LOUDEST * np.median(power) / least, np.float32(1)))
    return found


def factors(moments: Float32) -> tuple[NDArray[np.intp], Float32]:
    """Return the order of the columns, the loudest first, and U in it: float32 [n, n], zero from the diagonal down.

    ``moments`` is H, of which the lower triangle is read. H + ``DAMP`` diag(H) = (U + 1) D (U + 1)^T.
    """
    from edgepack_packager.arithmetic.repeatable import REPEATABLE

    diagonal = moments.diagonal()
    order = np.argsort(-diagonal, kind="stable")
    quiet = order[::-1]
    matrix = (np.tril(moments) + np.tril(moments, -1).T)[np.ix_(quiet, quiet)]
    least = np.float32(max(LEAST * math.fsum(diagonal) / len(diagonal), float(np.finfo(np.float32).tiny)))
    matrix[np.diag_indices_from(matrix)] += np.float32(DAMP) * np.maximum(diagonal[quiet], least)
    REPEATABLE.cholesky(matrix)
    matrix /= matrix.diagonal().copy()
    return order, np.triu(matrix[::-1, ::-1], 1)


def parts(columns: int) -> Iterator[range]:
    """Yield the columns of each part of a matrix, of about as many each, in whole groups of 128."""
    count = -(-columns // WIDTH)
    for index in range(count):
        yield range(*(min(columns, -(-columns * edge // count // 128) * 128) for edge in (index, index + 1)))


def key(name: str) -> str:
    """Return which matrix of its block has the inputs that a matrix has."""
    block, dot, role = name.rpartition(".")
    return f"{block}{dot}{_SHARED.get(role, role)}"


def digest(feedback: Mapping[str, Feedback]) -> str:
    """Return the sha256, in hexadecimal, of the names, the orders of their columns and the factors."""
    found = hashlib.sha256()
    for name in sorted(feedback):
        for part in feedback[name]:
            found.update(f"{name} {len(part.columns)}\n".encode() + part.columns.astype("<i4").tobytes())
            found.update(part.packed[0 : packed_size(len(part.columns))].astype("<u2").tobytes())
    return found.hexdigest()


def room(decoder: Decoder, names: Collection[str]) -> int:
    """Return the bytes that the factors of these matrices take on a disk."""
    shapes = dict(decoder.tensors())
    keys = {key(name) for name in names}
    return sum(2 * packed_size(len(place)) for name in keys for place in parts(shapes[name][1]))
