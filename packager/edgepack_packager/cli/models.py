"""The command that lists the catalogue, and what the catalogue knows of the name of a bundle that is not there."""

from __future__ import annotations

import shlex
from pathlib import Path

from edgepack.cli import options, screen
from edgepack.cli.help import examples

_NARROW = 80
"""Columns of the table: names are to be copied, so a narrower terminal may wrap them, but not cut them off."""


_ACCEPTED = {"tools": "calls tools", "thinking": "thinks unless told not to (--no-think)"}


@examples("edgepack models")
def models(json: options.AsJson = False) -> None:
    """List the models that have a short name: what `edgepack build NAME` fetches from the hub."""
    from msgspec import structs

    from edgepack_packager.source import catalog

    if json:
        screen.as_json({"models": [structs.asdict(entry) for entry in catalog.entries()]})
        return
    console = screen.out()
    console.width = max(console.width, _NARROW)
    table = screen.table("name", "repository", "params", "licence", right=("params",))
    notes: dict[str, list[str]] = {}
    for entry in catalog.entries():
        licence = entry.licence.removeprefix("LicenseRef-") + (", gated" if entry.gated else "")
        table.add_row(entry.alias, entry.repository, f"{entry.parameters / 1e9:.2f} B", licence)
        accepted = [said for name, said in _ACCEPTED.items() if name in entry.accepts]
        pretrained = entry.alias.endswith("-base")  # which has no turns at all
        if "system" not in entry.accepts and not pretrained:
            accepted.append("takes no system prompt")
        for note in (entry.note, *accepted):
            if note:
                notes.setdefault(note, []).append(entry.alias)
    console.print(table)
    console.print()
    for note, names in notes.items():
        screen.say(console, screen.styled("dim", f"{note}: {', '.join(names)}"))
    screen.next_step("edgepack", "fit", "smollm2-360m")


def suggestion(name: str) -> str | None:
    """Return how to make the bundle that a name at which there is none may mean; None where nothing is near."""
    from edgepack_packager.checkpoint import CONFIG
    from edgepack_packager.source import DEMO, catalog

    if (Path(name) / CONFIG).is_file():
        return f"It is a model that is yet to be packed: edgepack build {shlex.quote(name)}"
    named = name.removesuffix(".edgepack")
    if named == DEMO:
        return "Make it first: edgepack demo"
    if entry := catalog.find(named) or catalog.find(named.rpartition("/")[2]):
        return f"Build it first: edgepack build {entry.alias}"
    close = catalog.nearest(named)
    return f"Did you mean {close[0]}? Build it first: edgepack build {close[0]}" if close else None
