"""Sources: what a build is asked to convert, resolved to a folder."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from edgepack.errors import SourceError

DEMO = "demo"


@dataclass(frozen=True, slots=True)
class Source:
    """A folder in Hugging Face layout, the name that its bundle takes, and where it came from."""

    folder: Path
    name: str
    repository: str | None = None
    revision: str | None = None


def resolve(model: str) -> Source:
    """Return the source of a name: ``demo`` is the model that ships with edgepack, anything else a local folder.

    Raises ``SourceError`` where the folder or its config.json is missing.
    """
    if model == DEMO:
        return Source(Path(str(files("edgepack_packager"))) / "demo_model", DEMO)
    folder = Path(model).expanduser()
    if not folder.is_dir():
        raise SourceError(
            f"{model} is neither a folder nor {DEMO!r}.",
            hint="Give the folder with the model's config.json and weights.",
        )
    if not (folder / "config.json").is_file():
        raise SourceError(
            f"{model} has no config.json.", hint="Give the folder that was downloaded from the hub, whole."
        )
    return Source(folder, folder.resolve().name)
