"""``edgepack rollback``: a name stands for the bundle before."""

from __future__ import annotations

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, PolicyFile
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import Name, StoreFolder, changed, store_of, waiting


@examples("edgepack rollback smollm2", heading=DEVICE)
def rollback(name: Name, policy: PolicyFile = None, store: StoreFolder = None, json: AsJson = False) -> None:
    """Go back to the bundle before, whatever state the present one is in; a second rollback undoes the first."""
    from edgepack.trust.admitting import gate
    from edgepack_ship.store import names

    place = store_of(store)
    changed(names.rollback(place, name, admit=gate(policy, place.folder), waiting=waiting), json)
