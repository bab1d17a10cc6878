"""The commands, put together: the SDK's own and those that other packages register as ``edgepack.commands``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from edgepack.errors import EdgepackError, visible

_OWN = ("run", "replay", "inspect", "verify", "plan", "bench", "tune", "eval", "compare", "doctor")
"""The SDK's commands, each a function in a module of its name."""


def app_for(argv: Sequence[str]) -> typer.Typer:
    """Return the program for a command line: with one command alone where the first word names it, else with all.

    The other commands would only have to be imported and taken apart, an eighth of what a short command takes.
    """
    app = typer.Typer(
        help="Pack a small language model for GGUF, ONNX and MLX, prove that each pack is the same model, "
        "run it anywhere.",
        add_completion=False,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(edgepack)
    registered = sorted(entry_points(group="edgepack.commands"), key=lambda entry: entry.name)
    known = {*_OWN, *(entry.name for entry in registered)}
    wanted = known & set(argv[:1]) or known
    for entry in registered:
        if entry.name not in wanted:
            continue
        loaded = _load(entry)
        if isinstance(loaded, typer.Typer):  # a group of commands
            app.add_typer(loaded, name=entry.name)
        else:
            app.command(entry.name)(loaded)
    for name in _OWN:
        if name in wanted:
            app.command()(getattr(import_module(f"edgepack.cli.{name}"), name))
    return app


def edgepack(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """What stands before a command."""
    if version:
        from importlib.metadata import version as version_of

        typer.echo(f"edgepack {version_of('edgepack')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _load(entry: EntryPoint) -> Callable[..., None] | typer.Typer:
    try:
        command: Callable[..., None] | typer.Typer = entry.load()
    except Exception as error:
        reason = visible(str(error))

        def command() -> None:
            raise EdgepackError(f"The command {entry.name!r} of {entry.value} cannot be loaded: {reason}.")

        command.__doc__ = f"Cannot be loaded: {reason}."
    return command
