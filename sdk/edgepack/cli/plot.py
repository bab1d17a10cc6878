"""``--plot FILE.svg``: the figures of a report as a picture, beside the report."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.screen import err, say

if TYPE_CHECKING:
    from edgepack.measuring.picture import Panel

Plot = Annotated[
    Path | None, typer.Option(metavar="FILE.svg", help="Draw the figures into this file too.", show_default=False)
]


def check(path: Path | None, option: str = "--plot") -> None:
    """Raise ``UsageError`` where no picture can be written, before anything is measured for it."""
    from edgepack.errors import UsageError

    if path is None:
        return
    if path.suffix.lower() != ".svg":
        raise UsageError(f"{option} {path} does not end in .svg, which is what is drawn.")
    if path.is_dir() or not path.absolute().parent.is_dir():
        what = "is a folder" if path.is_dir() else "is in a folder that does not exist"
        raise UsageError(f"{option} {path} {what}.", hint="Name a file in a folder that is there.")


def write(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw panels into a file, in one piece, and say so on standard error."""
    from edgepack.bundle.writing import write_atomically
    from edgepack.measuring.picture import draw

    write_atomically(path, draw(title, panels).encode())
    say(err(), f"Drawn: {path}")
