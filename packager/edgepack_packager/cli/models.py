"""The command that lists the catalogue, and what the catalogue knows of the name of a bundle that is not there."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli import options, screen
from edgepack.cli.help import examples
from edgepack.errors import UsageError

if TYPE_CHECKING:
    from edgepack_packager.source.catalog import Entry

_PERMISSIVE = "permissive"

_NARROW = 80
"""Columns of the table: names are to be copied, so a narrower terminal may wrap them, but not cut them off."""

_COLUMNS = ("name", "params", "since", "licence", "repository")
_GAP = 2

_ACCEPTED = {"tools": "calls tools", "thinking": "thinks, or not, as it is told (--think, --no-think)"}


def devices(incomplete: str) -> list[str]:
    """Return the names of devices that begin so."""
    from edgepack_packager.fit.devices import DEVICES

    return [name for name in DEVICES if name.startswith(incomplete)]


Licence = Annotated[
    str | None,
    typer.Option("--licence", help='An SPDX identifier, or "permissive".', metavar="NAME", show_default=False),
]
Fits = Annotated[
    str | None,
    typer.Option(
        "--fits", help="As pi5-8gb: where 4 bits run.", metavar="DEVICE", autocompletion=devices, show_default=False
    ),
]
Tools = Annotated[bool, typer.Option("--tools", help="Whose template calls tools.")]
Thinking = Annotated[bool, typer.Option("--thinking", help="Which can think before they answer.")]
Embeds = Annotated[bool, typer.Option("--embeds", help="Which make vectors of texts.")]


@examples("edgepack models", "edgepack models --fits pi5-4gb --licence permissive --tools")
def models(
    fits: Fits = None,
    licence: Licence = None,
    tools: Tools = False,
    thinking: Thinking = False,
    embeds: Embeds = False,
    json: options.AsJson = False,
) -> None:
    """List the models that have a short name, newest first: what `edgepack build NAME` fetches from the hub."""
    from msgspec import structs

    wanted = {name for name, asked in (("tools", tools), ("thinking", thinking)) if asked}
    found = [entry for entry in _licensed(licence) if wanted <= {*entry.accepts} and entry.embeds >= embeds]
    if fits is not None:
        found = _fitting(found, fits)
    if json:
        screen.as_json({"models": [structs.asdict(entry) for entry in found]})
        return
    if not found:
        screen.say(screen.out(), "No model of the catalogue is so.")
        screen.next_step("edgepack", "models")
        return
    console = screen.out()
    console.width = max(console.width, _NARROW)
    rows = [_cells(entry) for entry in found]
    whole = sum(max(map(len, column)) + _GAP for column in zip(*rows, strict=True)) - _GAP <= console.width
    shown = len(_COLUMNS) if whole else len(_COLUMNS) - 1
    table = screen.table(*_COLUMNS[:shown], right=("params",))
    for row in rows:
        table.add_row(*row[:shown])
    notes: dict[str, list[str]] = {}
    for entry in found:
        accepted = [said for name, said in _ACCEPTED.items() if name in entry.accepts]
        if entry.embeds:
            accepted.append("makes vectors of texts (edgepack embed), and writes none")
        without_turns = entry.embeds or entry.alias.endswith("-base")
        if "system" not in entry.accepts and not without_turns:
            accepted.append("takes no system prompt")
        for note in (entry.note, *accepted):
            if note:
                notes.setdefault(note, []).append(entry.alias)
    console.print(table)
    console.print()
    for note, names in notes.items():
        screen.say(console, screen.styled("dim", f"{note}: {', '.join(names)}"))
    if not whole:
        screen.say(console, screen.styled("dim", "Their repositories: a wider terminal, or --json."))
    screen.next_step("edgepack", "fit", found[0].alias)


def _cells(entry: Entry) -> tuple[str, ...]:
    terms = _short(entry.licence) + (", gated" if entry.gated else "")
    return entry.alias, f"{entry.parameters / 1e9:.2f} B", entry.released, terms, entry.repository


def _licensed(name: str | None) -> list[Entry]:
    """Return the entries under a licence. Raises ``UsageError`` for a name that none has."""
    from edgepack_packager.licence.terms import terms_of
    from edgepack_packager.source import catalog

    if name is None:
        return [*catalog.entries()]
    if name.lower() == _PERMISSIVE:
        return [entry for entry in catalog.entries() if terms_of(entry.licence).permissive]
    found = [each for each in catalog.entries() if _short(each.licence).lower() == _short(name).lower()]
    if not found:
        known = sorted({_short(entry.licence) for entry in catalog.entries()})
        raise UsageError(
            f"No model of the catalogue is under {name!r}.", hint=f"Choose {_PERMISSIVE}, {', '.join(known)}."
        )
    return found


def _short(licence: str) -> str:
    return licence.removeprefix("LicenseRef-")


def _fitting(entries: Sequence[Entry], device: str) -> list[Entry]:
    """Return those of which a device runs a variant of 4 bits."""
    from edgepack.extras import require

    require("edgepack models --fits", "build")
    from edgepack_packager.fit import fit
    from edgepack_packager.fit.devices import find
    from edgepack_packager.source import read_config

    place = find(device)

    def runs(entry: Entry) -> bool:
        return any(row.default and row.fits for row in fit(read_config(entry.alias), place).rows)

    return [entry for entry in entries if runs(entry)]


def suggestion(name: str) -> str | None:
    """Return how to make the bundle that a name at which there is none may mean; None where nothing is near."""
    from edgepack_packager.checkpoint import CONFIG
    from edgepack_packager.source import DEMO, catalog

    if (Path(name) / CONFIG).is_file():
        return f"It is a model that is yet to be packed: edgepack build {shlex.quote(name)}"
    named = name.removesuffix(".edgepack")
    if named == DEMO:
        return "Make it first: edgepack demo"
    if entry := catalog.find(named) or catalog.find(named.rpartition("/")[2]):
        return f"Build it first: edgepack build {entry.alias}"
    close = catalog.nearest(named)
    return f"Did you mean {close[0]}? Build it first: edgepack build {close[0]}" if close else None
