"""A difference is made: what of a new bundle an old one does not have, piece by piece."""

from __future__ import annotations

import hashlib
import os
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import msgspec

from edgepack.bundle import work
from edgepack.bundle.files import DRAFT, MANIFEST, MAX_SIGNATURE, SIGNATURE, VARIANTS, Bundle, Progress
from edgepack.errors import BuildError, BundleDamagedError
from edgepack_ship.delta.difference import Difference, held
from edgepack_ship.delta.format import HEADER, MAGIC, MAX_INDEX, VERSION, Index, Made
from edgepack_ship.delta.pieces import Opened, Pieces
from edgepack_ship.reading import bytes_of, opened_regular
from edgepack_ship.writing import checked


@dataclass(frozen=True, slots=True)
class Change:
    """A file of the new bundle that the old one lacks: its size, and the bytes that it takes in the difference."""

    name: str
    size: int
    takes: int


@dataclass(frozen=True, slots=True)
class Report:
    """What a difference came to, in bytes: its own, and those of the new bundle. ``base`` and ``bundle`` are ids."""

    path: Path
    base: str
    bundle: str
    bytes: int
    whole: int
    changes: tuple[Change, ...]


def diff(old: Bundle, new: Bundle, out: Path, progress: Progress = lambda name, count: None) -> Report:
    """Write the file that makes a new bundle of an old one.

    It has what the copies here have: nothing is in it of a variant whose folder is missing in the new one, and nothing
    is read of one that the old one lacks. Before the file gets its name, what it makes was compared with the new
    manifest. ``progress`` gets each file's name and bytes, and gets them twice. Memory does not grow with the bundles.
    Raises ``OutputExistsError``, ``BundleError`` where a file is damaged or cannot be read, and ``BuildError`` for what
    the system refuses.
    """
    with work.folder(out, what="The difference") as scratch:
        path = scratch / "difference"
        with open(path, "xb") as file:
            changes = _write(old, new, file, progress)
        _prove(path, old, {each.name for each in changes}, progress)
        work.publish(path, out)
    whole = sum(path.stat().st_size for _, _, path in _files(new))
    return Report(out, old.id, new.id, out.stat().st_size, whole, changes)


def _prove(path: Path, old: Bundle, made: set[str], progress: Progress) -> None:
    """Raise ``BundleDamagedError`` where the files that a difference makes are not those of the new manifest."""
    try:
        with Difference(path, lambda id: old.path) as difference:
            for name, file in difference.contents().files(difference.variants()).items():
                if name not in made:
                    progress(name, file.size)
                    continue
                for _ in checked(difference.blocks(name, file), name, file, progress):
                    pass
    except BundleDamagedError as error:
        raise BundleDamagedError(
            f"The old bundle or the new one is not what its manifest says: {error.message}",
            hint="See which: edgepack verify",
        ) from None


def _write(old: Bundle, new: Bundle, file: BinaryIO, progress: Progress) -> tuple[Change, ...]:
    there, like = held(old), Likeness(old, new)
    sources: dict[str, int] = {}
    made: dict[str, Made] = {}
    changes = []
    file.write(bytes(HEADER.size))
    wanted = _files(new)
    for digest, name, path in wanted:
        with opened_regular(path) as descriptor, ExitStack() as stack:
            opened = Opened(descriptor)
            if digest not in there and digest not in made:
                begin = file.tell()
                near = like.of(name)
                read = [Opened(stack.enter_context(opened_regular(there[each][0]))) for each in near]
                numbers = [sources.setdefault(each, len(sources)) for each in near]
                pieces = Pieces(opened, read, file).table(numbers)
                made[digest] = Made(sha256=digest, size=opened.size, pieces=pieces)
                changes.append(Change(name, opened.size, file.tell() - begin + len(pieces)))
            progress(name, opened.size)
    index = msgspec.msgpack.encode(
        Index(
            base=old.id,
            bundle=new.id,
            draft=None if new.draft is None else new.draft.id,
            signature=next((digest for digest, name, _ in wanted if name == SIGNATURE), None),
            sources=list(sources),
            made=list(made.values()),
        )
    )
    at = file.tell()
    if len(index) > MAX_INDEX:
        raise BuildError(f"{new.path} differs too much from {old.path}.", hint="Ship the whole of it.")
    file.write(index)
    file.seek(0)
    file.write(HEADER.pack(MAGIC, VERSION, len(index), at))
    return tuple(changes)


def _files(new: Bundle) -> list[tuple[str, str, Path]]:
    """Return the sha256, the name and the path of each file of a bundle that is here, what no manifest lists first."""
    files = [(new.id, MANIFEST)] + ([] if new.draft is None else [(new.draft.id, f"{DRAFT}/{MANIFEST}")])
    if os.path.lexists(new.path / SIGNATURE):
        files.append((hashlib.sha256(bytes_of(new.path / SIGNATURE, MAX_SIGNATURE)).hexdigest(), SIGNATURE))
    files += [(file.sha256, name) for name, file in new.files().items()]
    return [(digest, name, new.path / name) for digest, name in files]


class Likeness:
    """Where in an old bundle to look for the bytes of a new one."""

    def __init__(self, old: Bundle, new: Bundle) -> None:
        self._old, self._new = old, new
        self._files = {name: file.sha256 for name, file in old.files().items()} | {MANIFEST: old.id}
        if old.draft is not None:
            self._files[f"{DRAFT}/{MANIFEST}"] = old.draft.id

    def of(self, name: str) -> list[str]:
        """Return the sha256 of the files that may have bytes of a file, the likeliest first.

        It is the one of the same name, and the others with its ending in the same variant, as a model may be cut into
        several; of a variant that the old bundle does not have, those in its variants of the same target.
        """
        near = [name]
        if name.startswith(f"{VARIANTS}/"):
            id = name.split("/")[1]
            known = [each.id for each in self._old.manifest.variants]
            target = self._new.variant(id).target
            akin = [each.id for each in self._old.manifest.variants if each.target == target]
            within = tuple(f"{VARIANTS}/{each}/" for each in ([id] if id in known else akin))
            near += [each for each in self._files if each.startswith(within) and Path(each).suffix == Path(name).suffix]
        return list(dict.fromkeys(self._files[each] for each in near if each in self._files))
