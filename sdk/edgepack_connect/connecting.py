"""From an address to a model on a server: what it is, is asked once. The entry point ``edgepack.connect``."""

from __future__ import annotations

from edgepack.connecting import TIMEOUT_S
from edgepack.errors import EngineError, UsageError, brief
from edgepack.language_model import Served
from edgepack_connect.address import Address, read_address
from edgepack_connect.line import Line
from edgepack_connect.patience import Patience
from edgepack_connect.remote import Remote
from edgepack_connect.server import Found, Offered, Server
from edgepack_connect.servers import SERVERS
from edgepack_connect.transport import Transport

_NAMED = 8


def connect(
    url: str,
    model: str | None = None,
    api_key: str | None = None,
    *,
    timeout_s: float = TIMEOUT_S,
    plain_http: bool = False,
) -> Remote:
    """Return a model on a server: see ``edgepack.connect``."""
    address = read_address(url)
    if model is not None and address.model not in (None, model):
        raise UsageError("model was given beside the one that url names.", hint="Leave one of them out.")
    if isinstance(timeout_s, bool) or not isinstance(timeout_s, int | float) or not 0 < timeout_s <= 86_400:
        raise UsageError(f"timeout_s is {timeout_s!r}.", hint="It is a number of seconds, up to 86400.")
    _check_key(api_key, address, plain_http)
    patience, line = Patience.of(timeout_s), Line()
    transport = Transport(address, api_key, patience)
    try:
        server, found = line.call(lambda: _recognised(transport))
        chosen = _chosen(found, model or address.model, server)
    except BaseException:
        line.close(transport.close)
        raise
    transport.server = f"{server.name} at {address.host}"
    served = Served(address.base, server.name, found.version, chosen.name, chosen.context)
    return Remote(line, transport, server, served, patience)


async def _recognised(transport: Transport) -> tuple[Server, Found]:
    for server in SERVERS:
        if (found := await server.recognise(transport)) is not None:
            return server, found
    raise EngineError(f"{transport.server} is no server of models.", hint="Check url.")


def _chosen(found: Found, wanted: str | None, server: Server) -> Offered:
    there = {each.name: each for each in found.models}
    if wanted is not None:
        # A server may load models that it does not list.
        return there.get(wanted) or Offered(wanted)
    if len(there) == 1:
        return next(iter(there.values()))
    if not there:
        raise UsageError(f"model was not given, and {server.name} lists none.", hint="Pass model, or url with #MODEL.")
    names = ", ".join(brief(name) for name in list(there)[:_NAMED])
    more = f" and {len(there) - _NAMED} more" if len(there) > _NAMED else ""
    raise UsageError(
        f"model was not given, and the server has several: {names}{more}.", hint="Pass model, or url with #MODEL."
    )


def _check_key(api_key: str | None, address: Address, plain_http: bool) -> None:
    if api_key is None:
        return
    if not isinstance(api_key, str) or any(not "!" <= letter <= "~" for letter in api_key):
        raise UsageError("api_key has characters that no header may have.", hint="Is there a line end in it?")
    if not address.secure and not address.is_loopback and not plain_http:
        raise UsageError(
            f"api_key would go to {brief(address.host)} by plain http, which anybody on the way can read.",
            hint="Take https, or allow it with plain_http=True.",
        )
