"""``edgepack unpack``: the folder of a packed bundle."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, bar, next_step, out, say, styled, use_of
from edgepack_ship.cli import DEVICE

File = Annotated[
    Path,
    typer.Argument(metavar="FILE", help="What edgepack pack wrote, or a tar of a bundle's folder.", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out", "-o", help="The bundle's folder. Default: the name of FILE, without .tar.", metavar="FOLDER",
        show_default=False,
    ),
]  # fmt: skip
Only = Annotated[
    list[str] | None,
    typer.Option("--variant", help="Only this variant. Repeatable.", metavar="ID", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle of that name.")]


@examples(
    "edgepack unpack demo.edgepack.tar -o demo.edgepack",
    "edgepack unpack demo.edgepack.tar --variant gguf-q4_0 -o pi.edgepack",
    heading=DEVICE,
)
def unpack(file: File, to: Out = None, variant: Only = None, force: Force = False, json: AsJson = False) -> None:
    """Unpack a bundle that is one file: only what its manifest names, and whole or not at all."""
    from edgepack.device.memory import human
    from edgepack.errors import UsageError
    from edgepack_ship.archive.packed import Archive
    from edgepack_ship.writing import write_bundle

    folder = to or Path(file.name.removesuffix(".tar"))
    if to is None and folder.name == file.name:
        raise UsageError(f"{file} does not end in .tar, so that its folder has no name.", hint="Name it with --out.")
    with Archive(file) as incoming, bar() as progress:
        chosen = incoming.variants() if variant is None else incoming.contents().chosen(variant)
        total = sum(each.size for each in incoming.contents().files(chosen).values())
        task = progress.add_task("Unpacking", total=total)
        bundle = write_bundle(
            incoming,
            folder,
            chosen,
            force=force,
            what="The unpacking",
            progress=lambda _, count: progress.advance(task, count),
        )
    if json:
        held = [each.id for each in bundle.manifest.variants]
        as_json({"path": str(folder), "id": bundle.id, "variants": held, "absent": list(bundle.absent)})
        return
    console = out()
    size = human(sum(each.size for each in bundle.files().values()))
    say(console, styled("bold", str(folder), f"  {size}, every sha256 as the manifest says"))
    say(
        console,
        f"holds {', '.join(each.id for each in bundle.manifest.variants) or 'no variant'} of sha256:{bundle.id}",
    )
    if bundle.absent:
        say(console, styled("yellow", f"not in this copy: {', '.join(bundle.absent)}"))
    next_step("edgepack", use_of(bundle.manifest), str(folder))
