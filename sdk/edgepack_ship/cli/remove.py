"""``edgepack remove``: a name and its bundles go."""

from __future__ import annotations

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import Name, StoreFolder, freed, store_of, waiting


@examples("edgepack remove smollm2", heading=DEVICE)
def remove(name: Name, store: StoreFolder = None, json: AsJson = False) -> None:
    """Take a name away, and the bundles that it alone stood for."""
    from edgepack_ship.store import names

    freed(f"{name} is removed", names.remove(store_of(store), name, waiting=waiting), json)
