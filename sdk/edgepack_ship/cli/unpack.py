"""``edgepack unpack``: the folder of a bundle that is one file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import DEVICE
from edgepack_ship.cli.options import Force, Kept

Packed = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="A packed bundle, or a tar of a bundle's folder.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The folder. Default: FILE without .tar, here.", metavar="FOLDER", show_default=False
    ),
]


@examples(
    "edgepack unpack demo.edgepack.tar",
    "edgepack unpack demo.edgepack.tar --variant gguf-q4_0 -o pi.edgepack",
    heading=DEVICE,
)
def unpack(file: Packed, to: Out = None, variant: Kept = None, force: Force = False, json: AsJson = False) -> None:
    """Write the folder of a packed bundle: what its manifest names alone, checked, and whole or not at all."""
    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.device.memory import human
    from edgepack.errors import UsageError
    from edgepack_ship.archive.packed import Archive
    from edgepack_ship.writing import write_bundle

    if to is None and file.suffix != ".tar":
        raise UsageError(f"{file} does not end in .tar, so that its folder has no name.", hint="Name it with --out.")
    out = Path(file.stem) if to is None else to
    with Interrupts(), Archive(file) as incoming, screen.bar() as progress:
        files = incoming.contents().files(variant or incoming.variants())
        task = progress.add_task("Unpacking", total=sum(each.size for each in files.values()))
        bundle = write_bundle(
            incoming,
            out,
            variant,
            force=force,
            what="The unpacking",
            progress=lambda _, count: progress.advance(task, count),
        )
    held = [each.id for each in bundle.manifest.variants]
    if json:
        screen.as_json({"path": str(out), "id": bundle.id, "variants": held, "absent": list(bundle.absent)})
        return
    console = screen.out()
    screen.say(console, screen.styled("bold", str(out), f"  {human(bundle.size())}, every sha256 as the manifest says"))
    screen.say(console, f"sha256:{bundle.id} with {', '.join(held) or 'no variant'}")
    if bundle.absent:
        screen.say(console, screen.styled("yellow", f"not in this copy: {', '.join(bundle.absent)}"))
    screen.next_step("edgepack", screen.use_of(bundle.manifest), str(out))
