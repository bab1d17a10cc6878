"""Whether the disks can take what is about to be written."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from edgepack.device.memory import human
from edgepack.errors import BuildError


@dataclass(frozen=True, slots=True)
class Need:
    """So many bytes of something are to be written below a folder, which need not exist yet."""

    what: str
    folder: Path
    size: int


def check(needs: Sequence[Need]) -> None:
    """Raise ``BuildError`` where a disk has less free than all that is to be written on it, as far as it tells."""
    with suppress(OSError):
        _check(needs)


def _check(needs: Sequence[Need]) -> None:
    disks: dict[int, list[Need]] = {}
    for need in needs:
        disks.setdefault(_existing(need.folder).stat().st_dev, []).append(need)
    for sharing in disks.values():
        free = disk_usage(_existing(sharing[0].folder)).free
        if sum(need.size for need in sharing) > free:
            wanted = " and ".join(f"{need.what} {human(need.size)} in {need.folder}" for need in sharing if need.size)
            raise BuildError(
                f"There is not enough room: {wanted}, where {human(free)} are free.",
                hint="Free some space, or choose another place: HF_HOME for the cache, --out for the bundle.",
            )


def _existing(folder: Path) -> Path:
    path = folder.absolute()
    return next(each for each in (path, *path.parents) if each.exists())
