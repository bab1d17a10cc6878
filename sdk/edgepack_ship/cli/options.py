"""Options that several commands of shipping share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.options import TRUST

if TYPE_CHECKING:
    from edgepack.bundle.files import Progress
    from edgepack_ship.store.names import Changed
    from edgepack_ship.store.place import Store

Name = Annotated[str, typer.Argument(metavar="NAME", help="What it is installed as.", show_default=False)]
StoreFolder = Annotated[
    Path | None,
    typer.Option(
        "--store",
        help="The store's folder. Default: EDGEPACK_STORE, else this user's, and the system's for root.",
        metavar="FOLDER",
        show_default=False,
    ),
]
Kept = Annotated[
    list[str] | None,
    typer.Option("--variant", help="Only this variant; several may be given.", metavar="ID", show_default=False),
]
Force = Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")]
AllowDowngrade = Annotated[
    bool, typer.Option("--allow-downgrade", help="Take a lower sequence than the name had before.")
]

PlainHttp = Annotated[
    bool,
    typer.Option(
        "--plain-http", help="Ask by http, where anybody on the way can read and change it.", rich_help_panel=TRUST
    ),
]


def store_of(folder: Path | None) -> Store:
    """Return the store that a command writes to."""
    from edgepack_ship.store import place

    return place.default() if folder is None else place.Store(folder)


def waiting() -> None:
    """Say that another process writes to the store."""
    from edgepack.cli import screen

    screen.say(screen.err(), "Another process writes to the store; this one waits.")


def changed(what: Changed, json: bool) -> None:
    """Print what a name stands for now."""
    from dataclasses import asdict

    from edgepack.cli import screen

    if json:
        screen.as_json(asdict(what))
        return
    screen.say(screen.out(), screen.styled("bold", what.name, f"  sha256:{what.id}"))
    screen.say(screen.out(), f"before it: sha256:{what.before}")
    screen.next_step("edgepack", "run", what.name)


def freed(what: str, count: int, json: bool) -> None:
    """Print how many bytes are free now."""
    from edgepack.cli import screen
    from edgepack.device.memory import human

    if json:
        screen.as_json({"freed": count})
    else:
        screen.say(screen.out(), f"{what}; {human(count)} are free now.")


@contextmanager
def shown(what: str, size: int) -> Iterator[Progress]:
    """Show how many of so many bytes are on their way, under a title."""
    from edgepack.cli.screen import bar

    with bar() as progress:
        task = progress.add_task(what, total=size)
        yield lambda _, count: progress.advance(task, count)
