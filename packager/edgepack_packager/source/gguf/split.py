"""A file that llama.cpp's gguf-split cut into parts, put together again while it is read.

Its first part has the metadata. Each says in keys of its own which of how many it is, and how many tensors all have
together; the others are found by their names. Source: llama.cpp's tools/gguf-split and src/llama-model-loader.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.files import PART
from edgepack_packager.checkpoint.gguf.file import GgufFile
from edgepack_packager.checkpoint.gguf.parse import Info
from edgepack_packager.checkpoint.weights import Float32
from edgepack_packager.source.gguf.keys import Keys, damaged

_NO, _COUNT, _TENSORS = _OWN = ("split.no", "split.count", "split.tensors.count")
_AGAIN = "Fetch all parts of one file, of one revision, into one folder, and leave them their names."


@dataclass(frozen=True, slots=True)
class Place:
    """Which part of how many a file says that it is, and how many tensors all parts have."""

    number: int
    count: int
    tensors: int

    @classmethod
    def of(cls, file: GgufFile) -> Self | None:
        """Read the keys of a file, None of one that is whole."""
        keys = Keys(file)
        count = keys.count(_COUNT, 1)
        if count < 2:
            return None
        place = cls(keys.count(_NO) + 1, count, keys.count(_TENSORS))
        if place.number > count:
            raise damaged(file.path, f"is part {place.number} of {count}")
        return place


class SplitFile(GgufFile):
    """The first part, with the tensors of all of them."""

    def __init__(self, paths: Sequence[Path]) -> None:
        """Open all parts. Raises ``SourceError`` where they are not those of one file."""
        self._parts: list[GgufFile] = []
        self._holders: dict[str, GgufFile] = {}
        super().__init__(paths[0], partial(damaged, paths[0]))
        self.paths = paths
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    @property
    def tensors(self) -> Mapping[str, Info]:
        """The tensors of all parts by name."""
        return self._tensors

    def rows(self, info: Info, start: int, stop: int) -> Float32:
        """Return rows [start, stop) of a tensor of any part: float32."""
        holder = self._holders.get(info.name)
        return super().rows(info, start, stop) if holder is None else holder.rows(info, start, stop)

    def holder(self, info: Info) -> Path:
        """Return the part that holds a tensor."""
        return self._holders.get(info.name, self).path

    def close(self) -> None:
        """Close all parts. Safe to call twice."""
        super().close()
        for part in self._parts:
            part.close()

    def _open(self) -> None:
        self._tensors = dict(super().tensors)
        first = self._placed(self, 1)
        for number, path in enumerate(self.paths[1:], 2):
            part = GgufFile(path, partial(damaged, path))
            self._parts.append(part)
            if (there := self._placed(part, number).tensors) != first.tensors:
                raise _foreign(path, f"is of a file with {there} tensors, and {self.path.name} of {first.tensors}")
            self._check_keys(part)
            for name, info in part.tensors.items():
                if name in self._tensors:
                    raise _foreign(part.path, f"has the tensor {name}, and so has {self.holder(info).name}")
                self._tensors[name] = info
                self._holders[name] = part
            if len(self._tensors) > first.tensors:
                break
        if len(self._tensors) != first.tensors:
            found = "more" if len(self._tensors) > first.tensors else len(self._tensors)
            raise _foreign(self.path, f"tells of {first.tensors} tensors in all parts, which have {found}")

    def _placed(self, file: GgufFile, number: int) -> Place:
        found = Place.of(file)
        if found is None or (found.number, found.count) != (number, len(self.paths)):
            raise misnamed(file.path, found)
        return found

    def _check_keys(self, part: GgufFile) -> None:
        """Refuse metadata of another part, which nothing reads, unless the first says the same."""
        for key, value in part.keys.items():
            if key not in _OWN and self.keys.get(key) != value:
                raise _foreign(part.path, f"has another value as {key} than {self.path.name}")
        for key in part.arrays:
            if key not in self.arrays or part.raw(key) != self.raw(key):
                raise _foreign(part.path, f"has another list as {key} than {self.path.name}")


def parts(path: Path, place: Place) -> list[Path]:
    """Return all parts of the file of which one is given, from the first on.

    Raises ``SourceError`` where its name does not say which it is, or another is missing.
    """
    match = PART.fullmatch(path.name)
    if match is None or (int(match[2]), int(match[3])) != (place.number, place.count):
        raise misnamed(path, place)
    found = [path.with_name(_name(match[1], number, place.count)) for number in range(1, place.count + 1)]
    if missing := [part.name for part in found if not part.exists()]:
        more = f" and {len(missing) - 1} more are" if len(missing) > 1 else " is"
        raise SourceError(
            f"{path} is part {place.number} of {place.count}, and {missing[0]}{more} missing beside it.", hint=_AGAIN
        )
    return found


def misnamed(path: Path, place: Place | None) -> SourceError:
    """Return the error of a part whose name and metadata disagree; None stands for a file that is whole."""
    match = PART.fullmatch(path.name)
    if place is None:
        return SourceError(f"{path} is named as a part of a file, and by its metadata it is none.", hint=_AGAIN)
    said = f"{path} is by its metadata part {place.number} of {place.count}"
    if match:
        return SourceError(f"{said}, and by its name part {int(match[2])} of {int(match[3])}.", hint=_AGAIN)
    others = (PART.fullmatch(other.name) for other in sorted(path.parent.iterdir()))
    stem = next((other[1] for other in others if other and int(other[3]) == place.count), path.stem)
    return SourceError(
        f"{said}, and its name does not say so.",
        hint=f"Name it {_name(stem, place.number, place.count)}, beside the other parts.",
    )


def only(folder: Path) -> Path | None:
    """Return a part of the split file whose parts are all GGUF files of a folder; None of other folders."""
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith(".gguf"))
    matches = [PART.fullmatch(name) for name in names]
    of = {match and (match[1], match[3]) for match in matches}
    return folder / names[0] if len(of) == 1 and None not in of else None


def title(path: Path) -> str:
    """Return the name of the file without its ending, and of a part the name of the whole."""
    match = PART.fullmatch(path.name)
    return match[1] if match else path.stem


def _foreign(path: Path, what: str) -> SourceError:
    return SourceError(f"{path} {what}.", hint=_AGAIN)


def _name(stem: str, number: int, count: int) -> str:
    return f"{stem}-{number:05}-of-{count:05}.gguf"
