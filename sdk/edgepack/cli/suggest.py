"""What may have been meant by the path of a bundle that is not there."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from contextlib import suppress
from difflib import get_close_matches
from importlib.metadata import entry_points
from pathlib import Path

ENDING = ".edgepack"


def bundle(path: str) -> str | None:
    """Return a hint for a path at which there is no bundle: one that lies beside it, or what makes it; else None.

    What makes bundles is asked through the entry points ``edgepack.suggestions``: each takes the name that was given
    and returns a sentence or None.
    """
    with suppress(OSError, ValueError):
        if found := _beside(Path(path)):
            return f"Did you mean {shlex.quote(found)}?"
    for entry in entry_points(group="edgepack.suggestions"):
        with suppress(Exception):  # a hint is not worth a fault
            suggest: Callable[[str], str | None] = entry.load()
            if said := suggest(path):
                return said
    return None


def _beside(path: Path) -> str | None:
    """Return the bundle in the same folder whose name is the nearest, with or without its ending."""
    there = {each.name: each for each in path.parent.glob(f"*{ENDING}") if each.is_dir() and each.name != path.name}
    named = {name.lower().removesuffix(ENDING): str(each) for name, each in there.items()}
    lower = Path(path.name.lower())  # without an ending, also a misspelt one: two short names are alike by that alone
    meant = lower.stem if get_close_matches(lower.suffix, [ENDING]) else lower.name
    close = get_close_matches(meant, named, n=1, cutoff=0.75)
    return named[close[0]] if close else None
