"""``edgepack use``: a name stands for another installed bundle."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, PolicyFile
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import AllowDowngrade, Name, StoreFolder, changed, store_of, waiting

Id = Annotated[str, typer.Argument(metavar="ID", help="The bundle's id, or its first digits.", show_default=False)]


@examples("edgepack use smollm2 3ef3053e2700", heading=DEVICE)
def use(
    name: Name,
    id: Id,
    allow_downgrade: AllowDowngrade = False,
    policy: PolicyFile = None,
    store: StoreFolder = None,
    json: AsJson = False,
) -> None:
    """Let a name stand for another bundle that is installed, once all its bytes were compared."""
    from edgepack.trust.admitting import gate
    from edgepack_ship.store import names

    place, downgrade = store_of(store), allow_downgrade
    admit = gate(policy, place.folder)
    changed(names.use(place, name, id, admit=admit, allow_downgrade=downgrade, waiting=waiting), json)
