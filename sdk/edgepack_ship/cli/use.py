"""``edgepack use``: a name stands for another installed bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import AllowDowngrade, Name, StoreFolder, changed, store_of, waiting

Id = Annotated[str, typer.Argument(metavar="ID", help="The bundle's id, or its first digits.", show_default=False)]


@examples("edgepack use smollm2 3ef3053e2700", heading=DEVICE)
def use(
    name: Name, id: Id, allow_downgrade: AllowDowngrade = False, store: StoreFolder = None, json: AsJson = False
) -> None:
    """Let a name stand for another bundle that is installed, once all its bytes were compared."""
    from edgepack_ship.store import names

    changed(names.use(store_of(store), name, id, allow_downgrade=allow_downgrade, waiting=waiting), json)
