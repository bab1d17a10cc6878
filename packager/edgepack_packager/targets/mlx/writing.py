"""Writes a variant: files of their full size first, then every block of rows at its place, in any amount of memory."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import BuildError
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import BINARY, write_at
from edgepack_packager.targets import CALIBRATED_BITS, Model, Written
from edgepack_packager.targets.mlx.config import config_json, text_files
from edgepack_packager.targets.mlx.forms import Affine
from edgepack_packager.targets.mlx.layout import (
    MIXED,
    float_type,
    index_json,
    lay_out,
    level_type,
    packings,
)
from edgepack_packager.targets.mlx.model_types import choose
from edgepack_packager.targets.mlx.names import place
from edgepack_packager.targets.mlx.quantize import Float, feed, keep_grids, quantize, round_to


class MlxWriter:
    """A variant that is being written; its descriptors are open until ``finish`` or ``abort``."""

    def __init__(self, folder: Path, model: Model, scheme: str, shard_bytes: int) -> None:
        self._folder = folder
        self._decoder = model.decoder
        self._scheme = scheme
        self._importance, self._feedback = model.importance, model.feedback
        self._float: Float = float_type(model.decoder, scheme, model.dtype)
        self._level_type = level_type(model.decoder, scheme, model.dtype)
        self._packings = packings(model.decoder, scheme, model.forms)
        self._kind = choose(model.decoder)
        self._shapes = dict(model.decoder.tensors())
        self._next = dict.fromkeys(self._shapes, 0)
        self._layout = lay_out(model.decoder, scheme, model.dtype, shard_bytes, model.forms)
        self._files: dict[str, int] = {}
        try:
            self._create(model)
        except OSError as error:
            self.abort()
            raise self._unwritable(error) from None
        except BaseException:
            self.abort()
            raise

    def _create(self, model: Model) -> None:
        documents = {"config.json": config_json(model, self._scheme)}
        if model.text is not None:
            documents |= text_files(model.text)
        if len(self._layout.sizes) > 1:
            documents["model.safetensors.index.json"] = index_json(self._layout, self._decoder.n_parameters)
        for name, data in documents.items():
            (self._folder / name).parent.mkdir(exist_ok=True)
            (self._folder / name).write_bytes(data)
        for name, size in self._layout.sizes.items():
            self._files[name] = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | BINARY, 0o644)
            os.truncate(self._files[name], size)
            self._pwrite(name, self._layout.heads[name], 0)

    def write(self, name: str, start: int, rows: Float32) -> None:
        """Take rows [start, start + len(rows)) of a canonical tensor: float32, in order.

        Raises ``BuildError`` where a value does not fit the scheme, or where the disk is full.
        """
        shape = self._shapes[name]
        if start != self._next[name] or rows.shape[1:] != shape[1:] or start + len(rows) > shape[0]:
            raise BuildError(f"Rows {start} to {start + len(rows)} of {name} {shape} came out of order.")
        try:
            self._store(name, start, rows)
        except OSError as error:
            raise self._unwritable(error) from None
        self._next[name] += len(rows)

    def _store(self, name: str, start: int, rows: Float32) -> None:
        where = place(self._kind, self._decoder, name)
        first = where.first + start
        own = self._packing(name)
        if own is None:
            # Gemma's file adds 1 to what is stored. Nothing is lost: the gain was made by adding 1 to such numbers.
            stored = rows - np.float32(self._kind.gain_offset) if name.endswith("norm") else rows
            self._put(where.tensor, first, self._round(name, stored))
            return
        counts = self._importance.get(name)
        search = self._scheme == MIXED or (counts is not None and own.bits < CALIBRATED_BITS)
        # Among more levels than those of 4 bits, rounding a bfloat16 scale moves weights from one to another.
        chosen_for = self._float if search and own.bits > 4 else self._level_type
        packed, scales, biases = quantize(rows, own.bits, chosen_for, search=search, group=own.group, importance=counts)
        if name in self._feedback:
            feed(rows, own.bits, self._float, packed, scales, biases, self._feedback[name])
        keep_grids(rows, own.bits, self._float, packed, scales, biases)
        self._put(f"{where.module}.weight", first, packed)
        self._put(f"{where.module}.scales", first, self._round(name, scales))
        self._put(f"{where.module}.biases", first, self._round(name, biases))

    def _packing(self, name: str) -> Affine | None:
        """Return how a matrix is quantised, None for a tensor that is not."""
        where = place(self._kind, self._decoder, name)
        return self._packings.get(where.module) if where.parameter == "weight" else None

    def _round(self, name: str, values: Float32) -> NDArray[np.generic]:
        """Round to the variant's float type. A float32 is stored as it is, whatever it holds."""
        rounded, fits = round_to(values, self._float)
        if fits or (self._float == "f32" and self._packing(name) is None):
            return rounded
        if not np.isfinite(values).all():
            raise BuildError(
                f"{name} holds a NaN or an infinity, which {self._scheme} cannot store.",
                hint="The source's weights are damaged; fetch them again.",
            )
        raise BuildError(
            f"{name} holds {np.abs(values).max():.6g}, which is beyond the range of {self._float}.",
            hint="Build bf16 or 4bit instead.",
        )

    def _put(self, slot_name: str, start: int, rows: NDArray[np.generic]) -> None:
        slot = self._layout.slots[slot_name]
        self._pwrite(slot.file, np.ascontiguousarray(rows).data.cast("B"), slot.offset + start * slot.row_bytes)

    def _pwrite(self, file: str, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = write_at(self._files[file], view, offset)
            view, offset = view[written:], offset + written

    def finish(self) -> Written:
        """Close the files. Raises ``BuildError`` where a tensor was not written whole."""
        for name, shape in self._shapes.items():
            if self._next[name] != shape[0]:
                raise BuildError(f"{name} was written up to row {self._next[name]} of {shape[0]}.")
        self.abort()
        return self._layout.written

    def abort(self) -> None:
        """Close the files as they are. Safe to call again."""
        while self._files:
            os.close(self._files.popitem()[1])

    def _unwritable(self, error: OSError) -> BuildError:
        return BuildError(
            f"{self._folder} cannot be written: {error.strerror}.", hint="Free some space or choose --out."
        )
