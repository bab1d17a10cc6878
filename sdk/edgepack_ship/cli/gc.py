"""``edgepack gc``: what no name stands for goes."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import StoreFolder, freed, store_of, waiting

Previous = Annotated[bool, typer.Option("--previous", help="Also the bundles to which a rollback would return.")]


@examples("edgepack gc", "edgepack gc --previous", heading=DEVICE)
def gc(previous: Previous = False, store: StoreFolder = None, json: AsJson = False) -> None:
    """Take away the bundles that no name stands for, and what interrupted installs left."""
    from edgepack_ship.store import names

    freed("What nothing needs is gone", names.gc(store_of(store), previous=previous, waiting=waiting), json)
