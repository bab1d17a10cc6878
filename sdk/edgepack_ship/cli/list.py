"""``edgepack list``: what is installed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import StoreFolder

if TYPE_CHECKING:
    from edgepack_ship.store.listing import Entry

All = Annotated[bool, typer.Option("--all", help="Also the bundles before, and those that no name stands for.")]


@examples("edgepack list", "edgepack list --all --json", heading=DEVICE)
def installed(all: All = False, store: StoreFolder = None, json: AsJson = False) -> None:
    """Show which bundles are installed, what each name stands for, and what it takes."""
    from dataclasses import asdict

    from edgepack.bundle.installed import stores
    from edgepack.cli import screen
    from edgepack_ship.store.listing import entries
    from edgepack_ship.store.place import Store

    folders = stores() if store is None else [store]
    found = [each for folder in folders for each in entries(Store(folder)) if all or each.state == "current"]
    if json:
        screen.as_json({"bundles": [asdict(each) for each in found]})
    elif found:
        _show(found)
    else:
        screen.say(screen.out(), f"Nothing is installed in {' or '.join(map(str, folders))}.")
        screen.next_step("edgepack", "install", "BUNDLE")


def _show(found: list[Entry]) -> None:
    from edgepack.cli import screen
    from edgepack.device.memory import human

    console = screen.out()
    for store in dict.fromkeys(each.store for each in found):
        rows = screen.table("name", "", "id", "version", "sequence", "size", "variants", right=("sequence", "size"))
        for each in (one for one in found if one.store == store):
            facts = (each.version, str(each.sequence), human(each.bytes), ", ".join(each.variants))
            shown = ("damaged", "", "", "") if each.problem else facts
            rows.add_row(each.name or "-", each.state, each.id[:12], *shown)
        screen.say(console, screen.styled("dim", store))
        console.print(rows)
    for each in found:
        if each.problem:
            screen.say(screen.err(), screen.styled("yellow", each.id[:12], f": {each.problem}"))
