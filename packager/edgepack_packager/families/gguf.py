"""Canonical tensors over those of a GGUF file, which has its own names for them and its own order of rows.

Nothing is computed on the way but what ggml's types stand for, so that these are the numbers that llama.cpp has.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from edgepack.bundle.decoder import Decoder, layer_of
from edgepack.errors import SourceError
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.checkpoint.gguf.names import parts, rotates
from edgepack_packager.checkpoint.gguf.parse import Info
from edgepack_packager.checkpoint.weights import Float32, finite

_TABLES = frozenset({"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"})


class GgufWeights:
    """``Weights`` over a GGUF file, whose names and shapes are checked beforehand."""

    def __init__(self, file: GgufFile, decoder: Decoder) -> None:
        self.decoder, self._file = decoder, file
        self._architecture = str(file.keys["general.architecture"])
        self._parts = parts(decoder, self._architecture)
        shapes = {part.name: part.shape for part in self._parts.values()}
        if missing := shapes.keys() - file.tensors.keys():
            raise file.fault(f"lacks {_some(missing)}, which its metadata ask for")
        if unknown := file.tensors.keys() - shapes.keys() - _TABLES:
            raise file.fault(f"has {_some(unknown)}, which nothing in its metadata explains")
        for name, shape in shapes.items():
            if (found := file.tensors[name].shape) != shape:
                raise file.fault(f"has the tensor {name} in the shape {list(found)}, and by its metadata {list(shape)}")
        self.dtype = file.dtype

    @property
    def files(self) -> Sequence[Path]:
        """The file, or all parts of it from the first on."""
        return self._file.paths

    @property
    def notes(self) -> list[str]:
        """What was passed over: nothing, for a file with more than the model is refused."""
        return []

    def info(self, name: str) -> Info:
        """Return the entry of the file's tensor that holds a canonical one."""
        return self._file.tensors[self._parts[name].name]

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a canonical tensor: float32. Raises ``SourceError`` for a NaN or an infinity."""
        info, first = self.info(name), self._parts[name].first
        if rotates(name, self._architecture):
            rows = self._file.half_split(info, self.decoder.attention(layer_of(name)).head_dim, start, stop)
        else:
            rows = self._file.rows(info, first + start, first + stop)
        if not finite(rows):
            raise SourceError(
                f"{self._file.holder(info)}: the tensor {info.name} has a NaN or an infinity.",
                hint="Fetch the file again.",
            )
        return rows


def _some(tensors: Collection[str]) -> str:
    first = sorted(tensors)[:3]
    more = f" and {len(tensors) - len(first)} more" if len(tensors) > len(first) else ""
    return f"the tensor{'s' if len(tensors) > 1 else ''} {', '.join(first)}{more}"
