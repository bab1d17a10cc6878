"""``edgepack push``: a bundle to a registry."""

from __future__ import annotations

from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import SHIP
from edgepack_ship.cli.options import PlainHttp

Where = Annotated[str, typer.Argument(metavar="BUNDLE", help="The bundle's folder, packed file or address.")]
To = Annotated[str, typer.Argument(metavar="ADDRESS", help="oci://HOST/REPOSITORY:TAG")]


@examples("edgepack push smollm2.edgepack oci://registry.example/models/smollm2:1", heading=SHIP)
def push(bundle: Where, address: To, plain_http: PlainHttp = False, json: AsJson = False) -> None:
    """Push a bundle to an OCI registry as a ModelPack artifact; what the registry has already is not sent again."""
    from contextlib import closing

    from edgepack.cli import screen
    from edgepack.device.memory import human
    from edgepack_ship import pushing
    from edgepack_ship.cli.options import shown
    from edgepack_ship.incoming import opened
    from edgepack_ship.registry.address import reference
    from edgepack_ship.registry.client import Client

    to = reference(address)
    with closing(Client(to.server(plain_http), plain_http)) as client, opened(bundle, bases=lambda _: None) as incoming:
        inside = incoming.contents()
        blobs = {file.sha256: file.size for file in inside.files(incoming.variants()).values()}
        with shown("Pushing", sum(blobs.values())) as progress:
            pushed = pushing.push(incoming, to, client, progress)
    if json:
        screen.as_json(pushed)
        return
    out = screen.out()
    screen.say(out, screen.styled("bold", inside.manifest.name, f"  sha256:{pushed.id}"))
    screen.say(
        out, screen.styled("green", "pushed", f": {human(pushed.sent)} sent, {human(pushed.there)} there before")
    )
    screen.say(out, f"as {pushed.reference}")
    screen.next_step("edgepack", "pull", address, "-o", f"{inside.manifest.name}.edgepack")
