"""``edgepack replay``: a result again, to the token."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson
from edgepack.cli.screen import as_json, err, styled, table
from edgepack.cli.spoken import Spoken

if TYPE_CHECKING:
    from edgepack.measuring.rerun import Rerun

ResultPath = Annotated[
    Path, typer.Argument(metavar="RESULT", help="The JSON of edgepack run --json.", show_default=False)
]
BundleNow = Annotated[
    Path | None,
    typer.Option("--bundle", metavar="BUNDLE", help="Where the bundle is. Default: where it was.", show_default=False),
]


@examples(
    'edgepack run demo.edgepack "What is edgepack?" --json > result.json',
    "edgepack replay result.json",
)
def replay(result: ResultPath, bundle: BundleNow = None, json: AsJson = False) -> None:
    """Generate a recorded result again, with its seed, threads and steps, and compare the two."""
    from edgepack.errors import EngineError
    from edgepack.measuring.rerun import read_result, rerun

    recorded = read_result(result)
    again = rerun(recorded, bundle)
    if json:
        as_json(again.to_dict())
    else:
        show(again)
    if not again.same:
        differs = ", ".join(again.changed) or "nothing that is recorded"
        raise EngineError(
            f"The text differs from token {again.first_difference} on.", hint=f"What is not the same here: {differs}."
        )


def show(again: Rerun) -> None:
    """Print the text on standard output, and on standard error whether it is the same and what changed since."""
    spoken = Spoken()
    spoken.write(again.result.text)
    spoken.end("\n")
    notes = err()
    if again.same:
        notes.print(styled("green", "The same text", f", {len(again.result.token_ids)} tokens."))
    if again.changed:
        rows = table("changed", "then", "now")
        for name, (then, now) in again.changed.items():
            rows.add_row(name, then, now)
        notes.print(rows)
