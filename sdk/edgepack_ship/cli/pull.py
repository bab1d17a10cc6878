"""``edgepack pull``: a bundle, or some of its variants, from a registry or a web folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundleId
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import Force, Kept, PlainHttp

From = Annotated[
    str, typer.Argument(metavar="ADDRESS", help="oci://HOST/REPOSITORY:TAG, or https://HOST/FOLDER/#NAME.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The new bundle's folder.", metavar="FOLDER")]


@examples(
    "edgepack pull oci://registry.example/smollm2:1 -o smollm2.edgepack",
    "edgepack pull 'https://models.example/edge/#smollm2' -o smollm2.edgepack",
    heading=DEVICE,
)
def pull(
    address: From,
    out: Out,
    variant: Kept = None,
    force: Force = False,
    id: BundleId = None,
    plain_http: PlainHttp = False,
    json: AsJson = False,
) -> None:
    """Pull a bundle into a folder; of a variant that is not asked for, nothing comes over the network."""
    from edgepack.bundle.files import check_id
    from edgepack.cli import screen
    from edgepack.cli.inspect import as_mapping, show
    from edgepack_ship.cli.options import shown
    from edgepack_ship.registry.opening import opened
    from edgepack_ship.writing import write_bundle

    with opened(address, plain_http) as incoming:
        inside = incoming.contents()
        check_id(address, inside.id, id)
        size = sum(file.size for file in inside.files(variant or incoming.variants()).values())
        with shown("Pulling", size) as progress:
            made = write_bundle(incoming, out, variant, force=force, what="The pull", progress=progress)
    if json:
        screen.as_json({"path": str(made.path)} | as_mapping(made))
        return
    show(made)
    screen.next_step("edgepack", screen.use_of(made.manifest), str(out))
