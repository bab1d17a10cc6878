"""Which names and addresses a server answers to, and which pages may ask it. Pure rules over headers.

A page of a stranger can let a browser ask a server that only this machine, or this network, reaches. It cannot choose
two headers: ``Host``, which names the stranger's own site where its name was made to point here, and ``Origin``.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from ipaddress import ip_address
from socket import gethostname

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(\d{1,5}))?")
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Names:
    """``hosts`` are names and addresses in small letters; with ``any_address`` every address is one, since a stranger's
    site has a name. ``origins`` are those of pages that may ask beside the server's own."""

    hosts: frozenset[str]
    any_address: bool = False
    origins: frozenset[str] = frozenset()

    @classmethod
    def of(cls, *bound: str, added: Collection[str] = (), origins: Collection[str] = ()) -> Names:
        """Return the names of a server that is bound to these addresses; without one, to a Unix socket."""
        every = not {"0.0.0.0", "::"}.isdisjoint(bound)
        own = {*added, *bound}
        if not bound or every or any(is_loopback(each) for each in bound):
            own |= {*_LOOPBACK}
        if every:
            own |= {(name := gethostname()), f"{name}.local"}
        return cls(frozenset(each.lower() for each in own), every, frozenset(each.lower() for each in origins))

    def knows(self, host: str) -> bool:
        """Whether a ``Host`` header names this server; by whichever port it is reached, as through a tunnel."""
        found = _HOST.fullmatch(host.strip())
        if found is None:
            return False
        name = found[1].strip("[]").lower().rstrip(".")
        return name in self.hosts or (self.any_address and _is_address(name))

    def admits(self, origin: str, scheme: str, host: str) -> bool:
        """Whether a page of this ``Origin`` may ask: the server's own, or one that was added."""
        given = origin.strip().lower()
        return given in self.origins or given == f"{scheme}://{host.strip().lower()}"


def is_loopback(host: str) -> bool:
    """Whether an address or a name that a server is bound to can be reached from this machine alone."""
    if host == "localhost":
        return True
    return _is_address(host) and ip_address(host).is_loopback


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
