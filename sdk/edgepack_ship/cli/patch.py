"""``edgepack patch``: a difference is applied to a folder, where there is no store."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import Force, Kept

Old = Annotated[
    Path, typer.Argument(metavar="OLD", help="The bundle that the difference was made for: a folder, or a name.")
]
Delta = Annotated[Path, typer.Argument(metavar="DIFFERENCE", help="The file that edgepack diff wrote.")]
Out = Annotated[
    Path, typer.Option("--out", "-o", help="The new bundle's folder.", metavar="FOLDER", show_default=False)
]


@examples("edgepack patch smollm2-1.edgepack 1-to-2.edgepack-delta -o smollm2-2.edgepack", heading=DEVICE)
def patch(
    old: Old, difference: Delta, to: Out, variant: Kept = None, force: Force = False, json: AsJson = False
) -> None:
    """Make the new bundle's folder of the old one's and of a difference, and compare all of it with its manifest."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli import screen
    from edgepack.cli.inspect import as_mapping, show
    from edgepack.errors import BundleError
    from edgepack_ship.delta.difference import Difference
    from edgepack_ship.writing import write_bundle

    base = open_bundle(old, verify="sizes")

    def found(id: str) -> Path:
        if id != base.id:
            raise BundleError(
                f"{difference} was made for sha256:{id}, and {old} is sha256:{base.id}.",
                hint="Get the difference that was made for this bundle.",
            )
        return base.path

    with Difference(difference, found) as incoming, screen.bar() as progress:
        files = incoming.contents().files(variant or incoming.variants())
        task = progress.add_task("Writing", total=sum(file.size for file in files.values()))
        made = write_bundle(
            incoming,
            to,
            variant,
            force=force,
            what="The patch",
            progress=lambda _, count: progress.advance(task, count),
        )
    if json:
        screen.as_json({"path": str(made.path)} | as_mapping(made))
        return
    show(made)
    screen.next_step("edgepack", "verify", str(to))
