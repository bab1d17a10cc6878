"""The writer: files of their full size first, then every block of rows at its place, in bounded memory."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from edgepack.errors import BuildError
from edgepack.runtime import KvCache
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import BINARY, write_at
from edgepack_packager.targets import Model, Written
from edgepack_packager.targets.feedback import Feedback
from edgepack_packager.targets.onnx import blocks, genai, graph, rope
from edgepack_packager.targets.onnx.layout import DATA_FILE, GRAPH_FILE, Region, Stored, layout


class OnnxWriter:
    """One variant that is being written: ``model.onnx``, ``model.onnx.data`` and, for a model that writes, what
    onnxruntime-genai needs: the tokenizer's files, and ``genai_config.json`` where it runs the graph."""

    def __init__(self, folder: Path, model: Model, scheme: str, kv_cache: KvCache) -> None:
        self._path = folder / DATA_FILE
        self._decoder = model.decoder
        self._layout = layout(model.decoder, scheme, kv_cache, model.forms)
        self._scales = model.cache_scales
        self._importance, self._feedback = model.importance, model.feedback
        self._rows = dict.fromkeys(self._layout.tensors, 0)
        self._file = -1
        try:
            (folder / GRAPH_FILE).write_bytes(graph.serialize(model.decoder, self._layout, kv_cache))
            if model.text is not None and not model.decoder.headless:  # of which onnxruntime-genai has no use
                if genai.runs(model.decoder):
                    (folder / genai.FILE).write_bytes(genai.config(model.decoder, model.text))
                for name in genai.TOKENIZER_FILES:
                    if name in model.text.files:
                        (folder / name).parent.mkdir(exist_ok=True)
                        (folder / name).write_bytes(model.text.files[name])
            self._file = os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | BINARY, 0o644)
            _reserve(self._file, self._layout.size)
        except OSError as error:
            self.abort()
            _fail(folder, error)

    def write(self, name: str, start: int, rows: Float32) -> None:
        """Quantise rows [start, start + len(rows)) of a canonical tensor and put them in their place."""
        stored = self._layout.tensors.get(name)
        if stored is None:
            raise BuildError(f"{self._path.name} has no place for the tensor {name}.")
        whole = stored.weight.shape[0]
        shape = (stored.columns,) if rows.ndim == 2 else ()
        if start != self._rows[name] or start + len(rows) > whole or rows.shape[1:] != shape:
            raise BuildError(f"{name}: rows {start} to {start + len(rows)} of {whole} do not follow the rows before.")
        encoded = _encoded(name, start, stored, rows, self._importance.get(name), self._feedback.get(name))
        for region, values in zip(stored.regions, encoded, strict=True):
            self._put(region, start, values)
        self._rows[name] = start + len(rows)

    def finish(self) -> Written:
        """Write the rope tables and the scales of the KV cache, close the file and report it."""
        for name, stored in self._layout.tensors.items():
            if self._rows[name] != stored.weight.shape[0]:
                raise BuildError(f"{name}: only {self._rows[name]} of {stored.weight.shape[0]} rows were written.")
        for kind, (cosine, sine) in self._layout.tables.items():
            for start, cosines, sines in rope.tables(kind, self._decoder.context):
                self._put(cosine, start, cosines)
                self._put(sine, start, sines)
        for name, region in self._layout.caches.items():
            if name not in self._scales:
                raise BuildError(f"{self._path.name}: {name} has no scales for its KV cache of q8.")
            self._put(region, 0, self._scales[name].astype("<f4", copy=False))
        self.abort()
        return self._layout.written

    def abort(self) -> None:
        """Close the file as it is."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1

    def _put(self, region: Region, start: int, values: NDArray[np.generic]) -> None:
        data = np.ascontiguousarray(values).reshape(-1).view(np.uint8).data
        offset = region.offset + start * region.row_bytes
        try:
            while len(data):
                written = write_at(self._file, data, offset)
                data, offset = data[written:], offset + written
        except OSError as error:
            _fail(self._path, error)


def _encoded(
    name: str,
    start: int,
    stored: Stored,
    rows: Float32,
    importance: Float32 | None,
    feedback: Feedback | None,
) -> tuple[NDArray[np.generic], ...]:
    """Return the rows as they are stored, one array for each region of the tensor."""
    if stored.weight.element == "f32":
        return (rows.astype("<f4", copy=False),)
    if stored.blocks is None:
        with np.errstate(over="ignore"):
            halves = rows.astype("<f2")
        _check_finite(name, start, np.isfinite(halves), "f16, whose largest number is 65504", "int8")
        return (halves,)
    codes, scales, zeros = blocks.encode(rows, stored.blocks, importance, feedback)
    _check_finite(name, start, np.isfinite(scales), f"int{stored.blocks.bits}", "f32")
    whole = codes, scales.astype("<f4", copy=False)
    return (*whole, blocks.pack_zeros(zeros, stored.blocks.bits)) if stored.blocks.asymmetric else whole


def _check_finite(name: str, start: int, finite: NDArray[np.bool_], scheme: str, other: str) -> None:
    if finite.all():
        return
    row = start + int(np.flatnonzero(~finite.all(axis=1))[0])
    raise BuildError(
        f"{name}: row {row} has a number that does not fit {scheme}.",
        hint=f"Check the checkpoint, or build with --quant {other}.",
    )


def _reserve(file: int, size: int) -> None:
    """Give the file its size, and the disk space now where the system can: a full disk shows before the work."""
    if hasattr(os, "posix_fallocate"):
        try:
            os.posix_fallocate(file, 0, size)
            return
        except OSError as error:
            import errno

            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
                raise
    os.ftruncate(file, size)


def _fail(path: Path, error: OSError) -> NoReturn:
    raise BuildError(
        f"{path} could not be written: {error.strerror}.", hint="Free some space or choose another folder."
    ) from error
