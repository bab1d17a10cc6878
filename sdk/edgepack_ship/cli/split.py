"""``edgepack split``: a bundle of some of a bundle's variants."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_ship.cli import SHIP
from edgepack_ship.cli.options import Force

Kept = Annotated[list[str], typer.Option("--variant", help="A variant to keep; several may be given.", metavar="ID")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The new bundle's folder.", metavar="FOLDER")]


@examples("edgepack split smollm2.edgepack --variant gguf-q4_k_m -o for-the-pi.edgepack", heading=SHIP)
def split(bundle: BundlePath, variant: Kept, out: Out, force: Force = False, json: AsJson = False) -> None:
    """Make a bundle of some of a bundle's variants, with their proof, the licence and the id of the whole."""
    from edgepack.cli import screen
    from edgepack.cli.inspect import as_mapping, show
    from edgepack_ship import parts

    made = parts.split(bundle, variant, out, force=force)
    if json:
        screen.as_json({"path": str(made.path)} | as_mapping(made))
        return
    show(made)
    screen.next_step("edgepack", "pack", str(out))
