"""The command that lists the catalogue."""

from __future__ import annotations

from edgepack.cli import screen


def models(json: screen.AsJson = False) -> None:
    """List the models that have a short name: what `edgepack build NAME` fetches from the hub."""
    from msgspec import structs

    from edgepack_packager.source import catalog

    if json:
        screen.as_json({"models": [structs.asdict(entry) for entry in catalog.entries()]})
        return
    table = screen.table("name", "repository", "params", "licence", "", "", right=("params",))
    for entry in catalog.entries():
        licence, gated = entry.licence.removeprefix("LicenseRef-"), "gated" if entry.gated else ""
        table.add_row(entry.alias, entry.repository, f"{entry.parameters / 1e9:.2f} B", licence, gated, entry.note)
    console = screen.out()
    # Names are to be copied: a narrow terminal may wrap them, but not cut them off.
    console.width = max(console.width, 120)
    console.print(table)
