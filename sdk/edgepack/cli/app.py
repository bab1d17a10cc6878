"""The commands, put together: the SDK's own and those that other packages register as ``edgepack.commands``."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from edgepack.cli import completing
from edgepack.cli.help import Command, Group, examples_of, heading_of
from edgepack.errors import EdgepackError, visible

_OWN = {
    "run": "Use a bundle",
    "embed": "Use a bundle",
    "inspect": "Use a bundle",
    "quality": "Use a bundle",
    "plan": "Use a bundle",
    "verify": "Use a bundle",
    "replay": "Use a bundle",
    "bench": "Measure",
    "tune": "Measure",
    "eval": "Measure",
    "compare": "Measure",
    "doctor": "This machine",
}
"""The SDK's commands, each a function in a module of its name, and the heading that it stands under."""

_NAME = "edgepack"


def command_for(argv: Sequence[str]) -> Callable[[], int]:
    """Return what runs a command line and returns its exit code; whatever goes wrong in it is raised."""
    if completing.ASKED in os.environ:
        completing.prepare()
        answering = completing.spoken(typer.main.get_command(app_for(completing.words())))
        return lambda: answering(prog_name=_NAME) or 0
    command = typer.main.get_command(app_for(argv))

    def run() -> int:
        try:
            with command.make_context(_NAME, list(argv)) as context:
                command.invoke(context)
        except typer.Exit as end:
            return end.exit_code
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else 1
        return 0

    return run


def app_for(argv: Sequence[str]) -> typer.Typer:
    """Return the program for a command line: with one command alone where the first word names it, else with all.

    The other commands would only have to be imported and taken apart, an eighth of what a short command takes.
    """
    registered = sorted(entry_points(group="edgepack.commands"), key=lambda entry: entry.name)
    known = {*_OWN, *(entry.name for entry in registered)}
    wanted = known & set(argv[:1]) or known
    app = typer.Typer(
        cls=Group,
        help="Pack a small language model for GGUF, ONNX and MLX, prove that each pack is the same model, "
        "run it anywhere.",
        context_settings={"help_option_names": ["-h", "--help"]},
        add_completion=wanted == known or completing.ASKED in os.environ,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
    )
    app.callback(invoke_without_command=True)(edgepack)
    for entry in registered:
        if entry.name not in wanted:
            continue
        loaded = _load(entry)
        if isinstance(loaded, typer.Typer):  # a group of commands
            app.add_typer(loaded, name=entry.name, rich_help_panel="Make a bundle")
        else:
            _add(app, entry.name, loaded, heading_of(loaded))
    for name, panel in _OWN.items():
        if name in wanted:
            _add(app, name, getattr(import_module(f"edgepack.cli.{name}"), name), panel)
    return app


def _add(app: typer.Typer, name: str, function: Callable[..., None], panel: str) -> None:
    app.command(name, cls=Command, epilog=examples_of(function), rich_help_panel=panel)(function)


def edgepack(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", help="Print the version and end.")] = False,
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
