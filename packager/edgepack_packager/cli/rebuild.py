"""``edgepack rebuild``: a bundle built again from what it records, and compared."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_packager.cli import again

if TYPE_CHECKING:
    from edgepack_packager.rebuild import Rebuilt

Check = Annotated[bool, typer.Option("--check", help="Keep nothing of what is built.")]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Keep it, in this folder.", metavar="FOLDER", show_default=False),
]
Calibrate = Annotated[
    str | None, typer.Option(help="The text that it was calibrated with.", metavar="FILE", show_default=False)
]
Receipt = Annotated[str | None, typer.Option(help="The text held out.", metavar="FILE", show_default=False)]
Draft = Annotated[str | None, typer.Option(help="The draft model.", metavar="MODEL", show_default=False)]


@examples(
    "edgepack rebuild demo.edgepack --check",
    "edgepack rebuild my-finetune.edgepack --check --source ./my-finetune",
)
def rebuild(
    bundle: BundlePath,
    check: Check = False,
    out: Out = None,
    source: again.Source = None,
    adapter: again.Adapters = None,
    calibrate: Calibrate = None,
    receipt: Receipt = None,
    draft: Draft = None,
    json: AsJson = False,
) -> None:
    """Build a bundle again from the recorded source and recipe, and say whether every byte is the same."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack.errors import BuildError, UsageError
    from edgepack.extras import needed, require
    from edgepack_packager.cli.bar import Bar

    if check == (out is not None):
        raise UsageError("It is either checked or kept.", hint="Give --check, or --out FOLDER.")
    opened = open_bundle(bundle)
    with needed("A build", "build"):
        require("A build", "build")
        from edgepack_packager import rebuild as rebuilding
        from edgepack_packager.recorded import Given

    given = Given(source, tuple(adapter or ()), calibrate, receipt, draft)
    with Interrupts() as interrupts, Bar(interrupts) as progress:
        found = rebuilding.rebuild(opened, given, out, progress=progress)
    if json:
        screen.as_json({"path": str(bundle), **_as_mapping(found)})
    else:
        _show(found)
    if not found.same:
        raise BuildError(
            f"{bundle} is not what its source and its recipe give here.",
            hint="Build with the recorded versions, on the same kind of processor."
            if found.tools
            else "The same versions gave other bytes: the source's other files or the processor may differ.",
        )


def _as_mapping(found: Rebuilt) -> dict[str, object]:
    tools = {name: {"recorded": before, "here": now} for name, (before, now) in found.tools.items()}
    return {
        "verdict": "same" if found.same else "differs",
        "id": found.id,
        "rebuilt": found.again,
        "differing": list(found.differing),
        "tools": tools,
    }


def _show(found: Rebuilt) -> None:
    from rich.text import Text

    from edgepack.cli import screen

    console = screen.out()
    if found.same:
        screen.say(console, screen.styled("green", "same", f": every byte of sha256:{found.id}"))
        return
    screen.say(console, screen.styled("bold red", "differs", f": sha256:{found.again}, not sha256:{found.id}"))
    for name in found.differing:
        screen.say(console, Text(f"  {name}"))
    if found.tools:
        rows = screen.table("tool", "recorded", "here")
        for name, (before, now) in found.tools.items():
            rows.add_row(name, before or "-", now or "-")
        console.print()
        console.print(rows)
