"""Writes a GGUF file: the whole header first, then each block of rows at its place, as it comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgepack.bundle.decoder import layer_of
from edgepack.errors import BuildError
from edgepack_packager.checkpoint.gguf.names import rotates
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import write_at
from edgepack_packager.targets import Model, Written
from edgepack_packager.targets.gguf import header
from edgepack_packager.targets.gguf.architecture import choose
from edgepack_packager.targets.gguf.layout import Tensor, place
from edgepack_packager.targets.gguf.metadata import metadata
from edgepack_packager.targets.gguf.quantize import Bytes, encode, keep_grids
from edgepack_packager.targets.gguf.tensors import factor, tables
from edgepack_packager.targets.gguf.tiles import moved


class GgufWriter:
    """A variant that is being written. It holds the header's tables and one encoded block, never a tensor."""

    def __init__(self, path: Path, model: Model, scheme: str) -> None:
        self._layout = place(model.decoder, scheme, model.forms, bool(model.importance))
        self._decoder = model.decoder
        self._importance, self._feedback = model.importance, model.feedback
        self._architecture = choose(model.decoder).name
        self._written = dict.fromkeys(self._layout.canonical, 0)
        start = header.encode(metadata(model, scheme), self._layout)
        self._data = len(start)
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - finish and abort close it
        try:
            self._file.truncate(self._data + self._layout.data_bytes)
            self._put(np.frombuffer(start, np.uint8), 0)
            beside = tables(model.decoder)
            for tensor in self._layout.tensors:
                if tensor.name in beside:
                    self._put(beside[tensor.name].view(np.uint8), self._data + tensor.offset)
        except BaseException:
            self.abort()
            raise

    def write(self, name: str, start: int, rows: Float32) -> None:
        """Encode rows [start, start + len(rows)) of a canonical tensor and put them at their place.

        Raises ``BuildError`` for rows that are not the next of their tensor or do not have its shape, and for values
        that the type cannot hold.
        """
        tensor = self._layout.canonical.get(name)
        if tensor is None:
            raise BuildError(f"{self._place(name)} does not belong to the model.")
        if start != self._written[name] or start + len(rows) > tensor.shape[0] or rows.shape[1:] != tensor.shape[1:]:
            raise BuildError(
                f"{self._place(name)} has the shape {tensor.shape} and {self._written[name]} rows so far; "
                f"rows of shape {rows.shape} at {start} do not follow."
            )
        assert tensor.part
        counts, feedback = self._importance.get(name), self._feedback.get(name)
        if tensor.part.columns:
            rows, counts, feedback = moved(tensor.part.columns, rows, counts, feedback)
        ratio = factor(self._decoder, name)
        scaled = rows if ratio == 1 else rows * np.float32(ratio)
        if name.endswith("delta.decay"):
            scaled = -np.exp(rows)  # what the file multiplies a softplus by
        encoded = encode(tensor.kind, scaled, self._place(name), counts, feedback)
        keep_grids(tensor.kind, rows, ratio, encoded, self._place(name))
        if rotates(name, self._architecture):
            encoded = self._interleave(encoded, name)
        for first, last in tensor.part.runs(start, start + len(rows)):
            at = tensor.part.place(first) * tensor.row_bytes
            self._put(encoded[first - start : last - start], self._data + tensor.offset + at)
        self._written[name] += len(rows)

    def finish(self) -> Written:
        """Close the file. Raises ``BuildError`` where a tensor was not written whole."""
        self._file.close()
        for name, rows in self._written.items():
            tensor: Tensor = self._layout.canonical[name]
            if rows != tensor.shape[0]:
                raise BuildError(f"{self._place(name)} got {rows} of its {tensor.shape[0]} rows.")
        return self._layout.written

    def abort(self) -> None:
        """Close the file as it is. Safe after ``finish``."""
        self._file.close()

    def _interleave(self, rows: Bytes, name: str) -> Bytes:
        """Reorder the rows of whole heads from half-split (i rotates with i + dim/2) to pairs (2i with 2i + 1).

        The rows are encoded already: each was encoded alone, and so moves as cheaply as its bytes.
        """
        dim = self._decoder.attention(layer_of(name)).head_dim
        if len(rows) % dim:
            raise BuildError(f"{self._place(name)}: a block of {len(rows)} rows does not end with a head of {dim}.")
        halves = rows.reshape(-1, 2, dim // 2, rows.shape[1])
        return halves.swapaxes(1, 2).reshape(rows.shape)

    def _put(self, data: Bytes, offset: int) -> None:
        remaining = memoryview(np.ascontiguousarray(data).reshape(-1).data)
        while remaining:
            done = write_at(self._file.fileno(), remaining, offset)
            remaining, offset = remaining[done:], offset + done

    def _place(self, name: str) -> str:
        return f"{Path(str(self._file.name)).name}: {name}"
