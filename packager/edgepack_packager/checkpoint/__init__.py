"""A checkpoint: a folder with config.json and its safetensors weights, in one file or in shards.

Opening checks everything that can be checked without reading tensor data. It knows no architecture: which tensors
there must be is a family's to say. It never reads a pickle and never runs the folder's code.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.files import CONFIG, INDEX, SINGLE, no_weights, shards
from edgepack_packager.checkpoint.safetensors import Entry, SafetensorsFile
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32

__all__ = ["CONFIG", "INDEX", "SINGLE", "Checkpoint", "open_checkpoint", "read_weight_map"]


class Checkpoint:
    """An open checkpoint, a context manager that closes its files.

    ``config`` is config.json, ``tensors`` all tensors by name, ``files`` the weight files that they lie in. ``absent``
    are the tensors that an index places in a file which does not hold them: nobody may need them.
    """

    def __init__(
        self,
        folder: Path,
        config: Mapping[str, Any],
        shards: Mapping[str, SafetensorsFile],
        absent: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.folder = folder
        self.config = config
        self.absent = absent
        self.files = sorted({shard.path for shard in shards.values()})
        self.tensors: Mapping[str, Entry] = {name: shard.entries[name] for name, shard in shards.items()}
        self._shards = shards

    def file_of(self, name: str) -> Path:
        """Return the file that a tensor lies in."""
        return self._shards[name].path

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a tensor as float32: [stop - start, columns], or [stop - start] of a vector.

        Raises ``UnsupportedModelError`` where the tensor is not F64, F32, F16 or BF16.
        """
        return self._shards[name].rows(name, start, stop)

    def close(self) -> None:
        """Close the weight files."""
        for shard in set(self._shards.values()):
            shard.close()
        self._shards = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_checkpoint(folder: Path) -> Checkpoint:
    """Open the checkpoint in a folder. Raises ``SourceError`` for anything missing, damaged or contradictory."""
    if not folder.is_dir():
        raise SourceError(f"{folder} is not a folder.", hint="Give the folder that holds config.json.")
    if not (folder / CONFIG).exists():
        raise SourceError(f"{folder} has no {CONFIG}.", hint="Give the folder of a Hugging Face checkpoint.")
    config = read_object(folder / CONFIG)
    with ExitStack() as stack:
        checkpoint = Checkpoint(folder, config, *_open_files(folder, stack))
        stack.pop_all()
    return checkpoint


def _open_files(folder: Path, stack: ExitStack) -> tuple[dict[str, SafetensorsFile], dict[str, str]]:
    """Open the weight files, each closed by ``stack``; return the file of every tensor, and what the index lacks."""
    names = [path.name for path in folder.iterdir()]
    if INDEX not in names:
        alone = [SINGLE] if SINGLE in names else shards(names)
        if not alone:
            raise no_weights(folder, names)
        return _tensors([_open_file(folder / name, stack) for name in alone]), {}
    index = folder / INDEX
    weight_map = read_weight_map(index)
    placed = sorted(set(weight_map.values()))
    # mlx-lm writes an index beside a single file too.
    if SINGLE in names and placed != [SINGLE]:
        other = next(name for name in placed if name != SINGLE)
        raise SourceError(
            f"{folder} has {SINGLE}, and {INDEX} places tensors in {other}.", hint="Remove the one that is out of date."
        )
    files = [_open_file(folder / name, stack) for name in placed if (folder / name).exists()]
    if not files:
        raise SourceError(f"{index} names the shard {placed[0]}, which is missing.", hint=_fetch(placed[0], folder))
    found = _tensors(files)
    return found, {tensor: name for tensor, name in weight_map.items() if tensor not in found}


def _tensors(files: Sequence[SafetensorsFile]) -> dict[str, SafetensorsFile]:
    """Return the file of every tensor. One that the index places elsewhere, or nowhere, is where it is."""
    found: dict[str, SafetensorsFile] = {}
    for file in files:
        for tensor in file.entries:
            if tensor in found:
                raise SourceError(
                    f"The tensor {tensor} is both in {found[tensor].path.name} and in {file.path}.",
                    hint="Remove the file that is out of date, or fetch all weight files of one revision.",
                )
            found[tensor] = file
    return found


def lacking(checkpoint: Checkpoint, tensor: str) -> SourceError:
    """Return the error of a needed tensor that only the index of a checkpoint has."""
    name, index = checkpoint.absent[tensor], checkpoint.folder / INDEX
    if not (checkpoint.folder / name).exists():
        return SourceError(f"{index} names the shard {name}, which is missing.", hint=_fetch(name, checkpoint.folder))
    return SourceError(
        f"{index} places the tensor {tensor} in {name}, which does not hold it.",
        hint=f"{_fetch(name, checkpoint.folder)} It must be of the same revision as the index.",
    )


def _fetch(name: str, folder: Path) -> str:
    return f"Fetch {name} into {folder}."


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor that an index names. Raises ``SourceError`` for a name of anything else."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index}: weight_map must map tensors to shards.", hint="Fetch the file again.")
    for tensor, name in weight_map.items():
        # A plain name keeps every file that is read inside the folder.
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]{1,200}\.safetensors", name):
            raise SourceError(
                f"{index}: the shard of {tensor}, {name!r}, is not a plain file name that ends with .safetensors."
            )
    return weight_map


def _open_file(path: Path, stack: ExitStack) -> SafetensorsFile:
    file = SafetensorsFile(path)
    stack.callback(file.close)
    return file
