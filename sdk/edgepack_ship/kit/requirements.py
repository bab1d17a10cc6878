"""What wheels need on a device: their requirements, by the markers of that device and not of the machine that asks."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.parser import BytesParser
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import Version

from edgepack.errors import BuildError


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel: its file, its version, and what it requires, with markers."""

    path: Path
    version: Version
    requires: tuple[Requirement, ...]


@dataclass(frozen=True, slots=True)
class Needs:
    """The wheels that something needs of those that are there, and the requirements that none of them meets."""

    wheels: tuple[Path, ...]
    lacking: tuple[str, ...]


def read(paths: Iterable[Path]) -> dict[str, Wheel]:
    """Return wheels by the normalised names of their packages. Raises ``BuildError`` for a file that is none."""
    wheels: dict[str, Wheel] = {}
    for path in paths:
        try:
            name, version, _, _ = parse_wheel_filename(path.name)
            with zipfile.ZipFile(path) as archive:
                inside = next(each for each in archive.namelist() if each.endswith(".dist-info/METADATA"))
                fields = BytesParser().parsebytes(archive.read(inside), headersonly=True)
            requires = tuple(Requirement(each) for each in fields.get_all("Requires-Dist", ()))
        except (InvalidWheelFilename, InvalidRequirement, zipfile.BadZipFile, StopIteration, OSError) as error:
            raise BuildError(f"{path.name} is no wheel: {error}.", hint="Remove it from pip's cache.") from None
        wheels[name] = Wheel(path, version, requires)
    return wheels


def needed(wheels: Mapping[str, Wheel], first: Requirement, markers: Mapping[str, str]) -> Needs:
    """Return what a requirement needs, all the way down, where markers have these values."""
    reached: dict[str, Path] = {}
    lacking: list[str] = []
    seen, waiting = set(), [first]
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        found = wheels.get(name)
        if found is None or not wanted.specifier.contains(found.version, prereleases=True):
            wanted.marker = None
            lacking.append(str(wanted))
            continue
        reached[name] = found.path
        for extra in sorted({"", *wanted.extras}):
            if (name, extra) not in seen:
                seen.add((name, extra))
                waiting += [each for each in found.requires if _holds(each, extra, markers)]
    return Needs(tuple(reached.values()), tuple(sorted(set(lacking))))


def _holds(requirement: Requirement, extra: str, markers: Mapping[str, str]) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**markers, "extra": extra})
