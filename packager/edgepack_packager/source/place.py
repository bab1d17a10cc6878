"""What a path says of the model in it: that a folder is one of the hub's cache, or that it is no checkpoint at all."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgepack.errors import SourceError
from edgepack_packager.checkpoint.files import ADAPTER, CONFIG, WITH_BASE, way_to
from edgepack_packager.checkpoint.strictjson import read_object

_CACHED = re.compile(r"models--((?:(?!--)[\w.-])+(?:--(?:(?!--)[\w.-])+)?)", re.ASCII)
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class Cached:
    """A snapshot in a cache of the hub: ``repository`` is OWNER/NAME, ``revision`` the 40-hex commit."""

    repository: str
    revision: str

    @property
    def name(self) -> str:
        """The repository's name without its owner."""
        return self.repository.rpartition("/")[2]


def cached(folder: Path) -> Cached | None:
    """Return what the path of a cache's folder says, models--OWNER--NAME/snapshots/COMMIT, links followed."""
    for path in (folder.absolute(), folder.resolve()):
        match = _CACHED.fullmatch(path.parent.parent.name)
        if match and path.parent.name == "snapshots" and _COMMIT.fullmatch(path.name):
            return Cached(match[1].replace("--", "/"), path.name)
    return None


def no_folder(path: Path) -> SourceError:
    """Return the error of a file that was given in the place of a folder."""
    return SourceError(f"{path} is a file, not a folder.", hint=f"Give its folder: {path.parent}")


def no_config(place: object, names: Collection[str], adapter: Callable[[], dict[str, Any]]) -> SourceError:
    """Return the error of a place without a config.json, from the ``names`` of its files.

    ``adapter`` reads its adapter_config.json.
    """
    if ADAPTER in names:
        base = adapter().get("base_model_name_or_path")
        return SourceError(
            f"{place} is an adapter{f' of {base}' if isinstance(base, str) and base else ''}, not a model.",
            hint=WITH_BASE,
        )
    if "params.json" in names:
        return SourceError(
            f"{place} has no {CONFIG}, but params.json: it is in its maker's own layout.",
            hint="Give the same model in Hugging Face layout.",
        )
    if gguf := sorted(name for name in names if name.lower().endswith(".gguf")):
        return SourceError(
            f"{place} has no {CONFIG}, but {gguf[0]}.", hint=f"Give the GGUF file itself{way_to(place, gguf[0])}"
        )
    return SourceError(
        f"{place} has no {CONFIG}.", hint="Give a model in Hugging Face layout: OWNER/NAME, or its folder, whole."
    )


def no_checkpoint(folder: Path) -> SourceError:
    """Return the error of a folder without a config.json; one inside that has it may have been meant."""
    found = [path.parent for depth in ("snapshots/*", "*") for path in sorted(folder.glob(f"{depth}/{CONFIG}"))]
    if found:
        return SourceError(f"{folder} has no {CONFIG}.", hint=f"Give the folder in it that has one: {found[0]}")
    names = [path.name for path in folder.iterdir()]
    return no_config(folder, names, lambda: read_object(folder / ADAPTER))
