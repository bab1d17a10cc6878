"""An open GGUF file: its header, and rows of its tensors, dequantised when they are asked for."""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from edgepack_packager.checkpoint.gguf.dequantize import dequantize
from edgepack_packager.checkpoint.gguf.parse import Array, Fault, Header, Info, Scalar, elements, parse
from edgepack_packager.checkpoint.strictjson import open_plain
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.positions import read_at

_FLOATS = {"F32": "f32", "F16": "f16", "BF16": "bf16"}


class GgufFile:
    """``keys`` are its scalars, ``tensors`` what it holds by name. It holds the header's tables, and never a tensor.

    ``paths`` are the files that it is, of which ``path`` is the first.
    """

    def __init__(self, path: Path, fault: Fault) -> None:
        """Open a file and parse its header. Raises what ``fault`` makes where it is not a sound GGUF file."""
        self.path = path
        self.paths: Sequence[Path] = [path]
        self.fault = fault
        try:
            self._descriptor = open_plain(path)
        except OSError as error:
            raise fault(f"cannot be read: {error.strerror}") from None
        try:
            self._header = self._parse()
        except BaseException:
            self.close()
            raise

    @property
    def keys(self) -> Mapping[str, Scalar]:
        """The scalars of the metadata."""
        return self._header.keys

    @property
    def tensors(self) -> Mapping[str, Info]:
        """The tensors by name."""
        return self._header.tensors

    @property
    def dtype(self) -> str:
        """The type that all matrices are stored in, "f32" where those are floats of several; "f16" where some are
        quantised, for that is what their scales are."""
        types = {info.type for info in self.tensors.values() if len(info.shape) > 1}
        found = {_FLOATS.get(kind, "f16") for kind in types}
        return found.pop() if len(found) == 1 else "f16" if types - _FLOATS.keys() else "f32"

    @property
    def arrays(self) -> Mapping[str, Array]:
        """The places of the metadata's arrays."""
        return self._header.arrays

    def array(self, key: str) -> Sequence[Scalar]:
        """Return the elements of an array of the metadata. Raises ``KeyError`` where there is none.

        Whoever asks looks at its size before.
        """
        array = self._header.arrays[key]
        with self._mapped() as data, memoryview(data) as view:
            return elements(view, array, self.fault)

    def raw(self, key: str) -> tuple[int, int, bytes]:
        """Return the type, the length and the bytes of an array of the metadata."""
        array = self._header.arrays[key]
        with self._mapped() as data:
            return array.kind, array.length, data[array.start : array.end]

    def holder(self, info: Info) -> Path:
        """Return the file that holds a tensor: this one."""
        return self.path

    def rows(self, info: Info, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a tensor of one or two dimensions: float32."""
        size = (stop - start) * info.row_bytes
        data = bytearray()
        while len(data) < size:
            part = read_at(self._descriptor, size - len(data), info.start + start * info.row_bytes + len(data))
            if not part:
                raise self.fault(f"ended inside {info.name}")
            data += part
        rows = np.frombuffer(data, np.uint8).reshape(stop - start, info.row_bytes)
        with np.errstate(invalid="ignore", over="ignore"):  # scales that are no numbers are for the caller to refuse
            return dequantize(info.type, rows).reshape(stop - start, *info.shape[1:])

    def half_split(self, info: Info, dim: int, start: int, stop: int) -> Float32:
        """Return rows of a tensor whose heads of ``dim`` rows are interleaved: row i of a head's first half is the
        file's row 2 i of the head, of its second half row 2 i + 1."""
        first = start // dim
        heads = self.rows(info, first * dim, -(-stop // dim) * dim)
        head, row = np.divmod(np.arange(start, stop), dim)
        half, within = np.divmod(row, dim // 2)
        return np.ascontiguousarray(heads[(head - first) * dim + 2 * within + half])

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _parse(self) -> Header:
        if os.fstat(self._descriptor).st_size == 0:
            raise self.fault("is empty")
        with self._mapped() as data, memoryview(data) as view:
            return parse(view, self.fault)

    def _mapped(self) -> mmap.mmap:
        return mmap.mmap(self._descriptor, 0, access=mmap.ACCESS_READ)


@dataclass(frozen=True, slots=True)
class GgufCheckpoint:
    """A GGUF file in the place of a checkpoint, and what its metadata say in the words of a config.json.

    A context manager that closes the file. ``files`` are the files that the model is made of.
    """

    file: GgufFile
    config: Mapping[str, Any]

    @property
    def files(self) -> Sequence[Path]:
        """The file, or all parts of it, for the model has no other."""
        return self.file.paths

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.file.close()
