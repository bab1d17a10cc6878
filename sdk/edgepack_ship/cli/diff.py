"""``edgepack diff``: what turns one bundle into another, in one file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack_ship.cli import SHIP

if TYPE_CHECKING:
    from edgepack_ship.diffing import Report

Old = Annotated[
    Path, typer.Argument(metavar="OLD", help="The bundle that devices have: a folder, or an installed name.")
]
New = Annotated[Path, typer.Argument(metavar="NEW", help="The bundle that they are to get.")]
Out = Annotated[Path, typer.Option("--out", "-o", help="The difference.", metavar="FILE", show_default=False)]


@examples(
    "edgepack diff smollm2-1.edgepack smollm2-2.edgepack -o 1-to-2.edgepack-delta",
    "edgepack install 1-to-2.edgepack-delta",
    heading=SHIP,
)
def diff(old: Old, new: New, to: Out, json: AsJson = False) -> None:
    """Write only what has changed from one bundle to another, for devices that have the old one."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli import screen
    from edgepack_ship import diffing

    before, after = open_bundle(old, verify="sizes"), open_bundle(new, verify="sizes")
    with screen.bar() as progress:
        task = progress.add_task("Comparing", total=2 * after.size())
        report = diffing.diff(before, after, to, lambda _, count: progress.advance(task, count))
    if json:
        screen.as_json(report)
    else:
        _show(report)
        screen.next_step("edgepack", "install", str(to))


def _show(report: Report) -> None:
    from edgepack.cli import screen
    from edgepack.device.memory import human

    console = screen.out()
    share = report.bytes / report.whole
    said = f"  {human(report.bytes)}, {share:.3%} of the whole bundle's {human(report.whole)}"
    screen.say(console, screen.styled("bold", str(report.path), said))
    screen.say(console, f"from sha256:{report.base}")
    screen.say(console, f"to   sha256:{report.bundle}")
    rows = screen.table("changed", "size", "in the difference", right=("size", "in the difference"))
    for each in report.changes:
        rows.add_row(each.name, human(each.size), human(each.takes))
    if report.changes:
        console.print()
        console.print(rows)
