"""The folder beside a bundle for the evidence of variants that failed their proof."""

from __future__ import annotations

import os
from pathlib import Path

from edgepack.bundle.work import publish
from edgepack.errors import OutputExistsError


def evidence_of_failures(out: Path) -> Path:
    """Return the folder for the evidence of variants that fail: ``NAME.failed`` beside ``NAME.edgepack``.

    Each build of ``out`` leaves there what failed in it, and so nothing where nothing did. Raises
    ``OutputExistsError`` for a folder that holds anything but evidence.
    """
    folder = out.with_name(out.name.removesuffix(".edgepack") + ".failed")
    if folder.is_symlink() or (folder.exists() and not _holds_evidence(folder)):
        raise OutputExistsError(
            f"{folder} exists already, and is not the evidence of an earlier build.",
            hint="Remove it or choose another --out.",
        )
    return folder


def _holds_evidence(folder: Path) -> bool:
    return folder.is_dir() and all(path.is_file() and path.suffix == ".json" for path in folder.iterdir())


def replace(folder: Path, out: Path) -> None:
    """Give a finished folder of evidence its name in place of an earlier one; an empty folder leaves nothing there."""
    if out.exists():
        os.rename(out, folder.with_suffix(".before"))
    if any(folder.iterdir()):
        publish(folder, out)
