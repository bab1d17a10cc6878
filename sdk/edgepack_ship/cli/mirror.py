"""``edgepack mirror``: bundles in a folder that any web server serves."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import SHIP

Bundles = Annotated[
    list[str], typer.Argument(metavar="BUNDLE...", help="Bundles, each a folder, packed file or address.")
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The folder, new or with bundles in it.", metavar="FOLDER")]


@examples(
    "edgepack mirror smollm2.edgepack -o /srv/www/edge",
    "edgepack mirror small.edgepack large.edgepack -o /srv/www/edge --json",
    heading=SHIP,
)
def mirror(bundles: Bundles, out: Out, json: AsJson = False) -> None:
    """Add bundles to a folder that any web server serves: an index, and every file under its digest."""
    import msgspec

    from edgepack.cli import screen
    from edgepack.device.memory import human
    from edgepack_ship import mirroring
    from edgepack_ship.cli.options import shown
    from edgepack_ship.incoming import opened

    with ExitStack() as stack:
        incoming = [stack.enter_context(opened(each, bases=lambda _: None)) for each in bundles]
        size = sum(file.size for each in incoming for file in each.contents().files(each.variants()).values())
        with shown("Mirroring", size) as progress:
            made = mirroring.mirror(incoming, out, progress)
    if json:
        screen.as_json(msgspec.to_builtins(made, enc_hook=str))
        return
    console = screen.out()
    rows = screen.table("name", "version", "sequence", "variants", "id", right=("sequence",))
    for each in made.added:
        rows.add_row(each.name, each.version, str(each.sequence), ", ".join(each.variants), f"sha256:{each.id[:12]}")
    console.print(rows)
    screen.say(console, screen.styled("green", "mirrored", f": {human(made.written)} written to {made.path}"))
