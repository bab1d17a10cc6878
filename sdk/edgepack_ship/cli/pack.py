"""``edgepack pack``: a bundle in one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack.cli.screen import as_json, bar, next_step, out, say, styled
from edgepack_ship.cli import SHIP

Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="The file. Default: the name of the bundle's folder, .tar.",
        metavar="FILE",
        show_default=False,
    ),
]
Only = Annotated[
    list[str] | None,
    typer.Option("--variant", help="Only this variant. Repeatable.", metavar="ID", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a packed bundle of that name.")]


@examples(
    "edgepack pack demo.edgepack -o demo.edgepack.tar",
    "edgepack pack demo.edgepack --variant gguf-q4_0 -o pi.edgepack.tar",
    heading=SHIP,
)
def pack(bundle: BundlePath, to: Out = None, variant: Only = None, force: Force = False, json: AsJson = False) -> None:
    """Pack a bundle into one file, an uncompressed tar, and compare it with its manifest on the way.

    The same bundle gives the same bytes, whoever packs it and when. A bundle that is packed already can be packed
    again, with fewer variants.
    """
    from edgepack.device.memory import human
    from edgepack_ship import packing
    from edgepack_ship.incoming import opened

    with opened(str(bundle), lambda id: None) as incoming, bar() as progress:
        chosen = incoming.variants() if variant is None else incoming.contents().chosen(variant)
        total = sum(file.size for file in incoming.contents().files(chosen).values())
        task = progress.add_task("Packing", total=total)
        packed = packing.pack(
            incoming,
            to or Path(f"{Path(bundle).resolve().name.removesuffix('.tar')}.tar"),
            chosen,
            force=force,
            progress=lambda _, count: progress.advance(task, count),
        )
    if json:
        as_json(packed)
        return
    console = out()
    say(console, styled("bold", str(packed.path), f"  {human(packed.size)}"))
    say(console, f"holds {', '.join(packed.variants) or 'no variant'} of sha256:{packed.id}")
    if packed.absent:
        say(console, styled("yellow", f"not in this file: {', '.join(packed.absent)}"))
    next_step("edgepack", "unpack", str(packed.path))
