"""The bundle that an address on the network names."""

from __future__ import annotations

from edgepack_ship.registry import address
from edgepack_ship.registry.address import Reference
from edgepack_ship.registry.client import Client
from edgepack_ship.registry.stored import Stored
from edgepack_ship.registry.web import Mirrored


def opened(where: str, plain_http: bool = False) -> Stored | Mirrored:
    """Return the bundle at ``oci://...`` or ``https://...``; nothing is asked yet.

    ``plain_http`` allows http to other machines than this. Raises ``UsageError`` for what is no such address.
    """
    found = address.read(where)
    if isinstance(found, Reference):
        return Stored(found, Client(found.server(plain_http), plain_http))
    return Mirrored(found, Client(found.url, plain_http))
