"""``edgepack pack``: a bundle in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_ship.cli import SHIP
from edgepack_ship.cli.options import Kept

Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The file. Default: the bundle's name and .tar, here.", metavar="FILE", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a packed bundle that is there.")]


@examples(
    "edgepack pack demo.edgepack -o demo.edgepack.tar",
    "edgepack pack demo.edgepack --variant gguf-q4_0 -o pi.edgepack.tar",
    heading=SHIP,
)
def pack(bundle: BundlePath, to: Out = None, variant: Kept = None, force: Force = False, json: AsJson = False) -> None:
    """Pack a bundle into one file, compared with its manifest on the way: the same bytes, whoever packs it and when."""
    from dataclasses import asdict

    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.device.memory import human
    from edgepack_ship import packing
    from edgepack_ship.incoming import opened
    from edgepack_ship.store import place

    out = Path(f"{bundle.resolve().name.removesuffix('.tar')}.tar") if to is None else to
    with Interrupts(), opened(str(bundle), place.default().present) as incoming, screen.bar() as progress:
        files = incoming.contents().files(variant or incoming.variants())
        task = progress.add_task("Packing", total=sum(file.size for file in files.values()))
        packed = packing.pack(
            incoming, out, variant, force=force, progress=lambda _, count: progress.advance(task, count)
        )
    if json:
        screen.as_json(asdict(packed))
        return
    console = screen.out()
    screen.say(console, screen.styled("bold", str(packed.path), f"  {human(packed.size)}"))
    screen.say(console, f"sha256:{packed.id} with {', '.join(packed.variants) or 'no variant'}")
    if packed.absent:
        screen.say(console, screen.styled("yellow", f"not in this file: {', '.join(packed.absent)}"))
    screen.next_step("edgepack", "install", str(packed.path))
