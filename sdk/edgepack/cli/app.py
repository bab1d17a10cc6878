"""The commands, put together: the SDK's own and those that other packages register as ``edgepack.commands``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from edgepack.cli import bench, compare, doctor, eval, inspect, plan, replay, run, tune, verify
from edgepack.errors import EdgepackError, visible

app = typer.Typer(
    help="Pack a small language model for GGUF, ONNX and MLX, prove that each pack is the same model, run it anywhere.",
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback(invoke_without_command=True)
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


for _entry in sorted(entry_points(group="edgepack.commands"), key=lambda entry: entry.name):
    _loaded = _load(_entry)
    if isinstance(_loaded, typer.Typer):  # a group of commands
        app.add_typer(_loaded, name=_entry.name)
    else:
        app.command(_entry.name)(_loaded)
for _command in (
    run.run,
    replay.replay,
    inspect.inspect,
    verify.verify,
    plan.plan,
    bench.bench,
    tune.tune,
    eval.eval,
    compare.compare,
    doctor.doctor,
):
    app.command()(_command)
