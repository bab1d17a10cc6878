"""A checkpoint: a folder with config.json and its safetensors weights, in one file or in shards.

Opening checks everything that can be checked without reading tensor data. It knows no architecture: which tensors
there must be is a family's to say. It never reads a pickle and never runs the folder's code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from fnmatch import fnmatch
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.safetensors import Entry, SafetensorsFile
from edgepack_packager.checkpoint.strictjson import read_object
from edgepack_packager.checkpoint.weights import Float32

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class Checkpoint:
    """An open checkpoint, a context manager that closes its files.

    ``config`` is config.json, ``tensors`` all tensors by name, ``files`` the weight files that they lie in.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], shards: Mapping[str, SafetensorsFile]) -> None:
        self.folder = folder
        self.config = config
        self.files = sorted({shard.path for shard in shards.values()})
        self.tensors: Mapping[str, Entry] = {name: shard.entries[name] for name, shard in shards.items()}
        self._shards = shards

    def rows(self, name: str, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a tensor as float32: [stop - start, columns], or [stop - start] of a vector.

        Raises ``UnsupportedModelError`` where the tensor is not F32, F16 or BF16.
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
        shards = _open_shards(folder, stack)
        checkpoint = Checkpoint(folder, config, shards)
        stack.pop_all()
    return checkpoint


def _open_shards(folder: Path, stack: ExitStack) -> dict[str, SafetensorsFile]:
    """Open the weight files, each closed by ``stack``, and return the file of every tensor."""
    single, index = (folder / SINGLE).exists(), (folder / INDEX).exists()
    if single and index:
        raise SourceError(f"{folder} has both {SINGLE} and {INDEX}.", hint="Remove the one that is out of date.")
    if single:
        file = _open_file(folder / SINGLE, stack)
        return dict.fromkeys(file.entries, file)
    if index:
        return _open_indexed(folder / INDEX, stack)
    raise no_weights(str(folder), [path.name for path in folder.iterdir()])


def _open_indexed(index: Path, stack: ExitStack) -> dict[str, SafetensorsFile]:
    weight_map = read_weight_map(index)
    shards: dict[str, SafetensorsFile] = {}
    for name in sorted(set(weight_map.values())):
        path = index.parent / name
        if not path.exists():
            raise SourceError(
                f"{index} names the shard {name}, which is missing.", hint=f"Fetch {name} into {path.parent}."
            )
        file = _open_file(path, stack)
        for tensor in file.entries:
            if tensor in shards:
                raise SourceError(f"The tensor {tensor} is both in {shards[tensor].path.name} and in {path}.")
            if weight_map.get(tensor) != name:
                said = f"in {weight_map[tensor]}" if tensor in weight_map else "nowhere"
                raise SourceError(f"{path} holds the tensor {tensor}, which {index.name} places {said}.")
            shards[tensor] = file
    for tensor, name in weight_map.items():
        if tensor not in shards:
            raise SourceError(f"{index} places the tensor {tensor} in {name}, which does not hold it.")
    return shards


def read_weight_map(index: Path) -> dict[str, str]:
    """Return the file of every tensor that an index names. Raises ``SourceError`` for a name of anything else."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index}: weight_map must map tensors to shards.", hint="Fetch the file again.")
    for tensor, name in weight_map.items():
        # A plain name keeps every file that is read inside the folder.
        if not isinstance(name, str) or "/" in name or "\\" in name or not name.endswith(".safetensors"):
            raise SourceError(
                f"{index}: the shard of {tensor}, {name!r}, is not a plain file name that ends with .safetensors."
            )
    return weight_map


def _open_file(path: Path, stack: ExitStack) -> SafetensorsFile:
    file = SafetensorsFile(path)
    stack.callback(file.close)
    return file


def no_weights(place: str, names: Iterable[str]) -> SourceError:
    """Return the error of a place whose files, of these names, have no safetensors weights."""
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in _PICKLES))
    if pickles:
        return SourceError(
            f"{place} has no {SINGLE}, only {pickles[0]}: a pickle, which runs its author's code when it is loaded.",
            hint="Use a revision with safetensors weights, or where you trust the file load it with transformers and "
            "save it again with save_pretrained().",
        )
    return SourceError(f"{place} has neither {SINGLE} nor {INDEX}.", hint="Fetch the weights as safetensors.")
