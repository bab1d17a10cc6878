"""The help of a command: its options by groups, and examples. Plain text: no frame is drawn, and no word is cut."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from typer import Exit, echo
from typer.core import TyperCommand, TyperGroup

_Function = TypeVar("_Function", bound=Callable[..., object])
_REST = "Options"
_WHOLE = 1000  # letters, more than any sentence has


def examples(*lines: str, heading: str | None = None) -> Callable[[_Function], _Function]:
    """Give a command the examples that stand at the end of its help, each a whole command line.

    ``heading`` is where a command of another package stands in the list of all: "Make a bundle", where it says none.
    """

    def give(function: _Function) -> _Function:
        function.__dict__["examples"] = lines
        function.__dict__["heading"] = heading
        return function

    return give


def heading_of(function: Callable[..., object]) -> str:
    """Return the heading under which the command of another package is listed."""
    return getattr(function, "heading", None) or "Make a bundle"


def examples_of(function: Callable[..., object]) -> str | None:
    """Return the examples of a command as typer's ``epilog``."""
    return "\n".join(getattr(function, "examples", ())) or None


class Command(TyperCommand):
    """A command with its help in groups."""

    def get_short_help_str(self, limit: int = _WHOLE) -> str:
        """Return the first sentence of the help, whole: in a list of commands, and where a shell completes them."""
        return super().get_short_help_str(_WHOLE)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the options, each group under its heading and those of none at the end."""
        _write(_grouped(self, ctx), formatter)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        """Write the examples as they are."""
        if self.epilog:
            with formatter.section("Examples"):
                formatter.write("".join(f"  {line}\n" for line in self.epilog.splitlines()))


class Group(TyperGroup):
    """A group of commands, each with the first sentence of its help, by ``rich_help_panel`` under a heading."""

    def get_short_help_str(self, limit: int = _WHOLE) -> str:
        """As ``Command``'s."""
        return super().get_short_help_str(_WHOLE)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take the words apart; without any, show the help where the group does nothing by itself."""
        if not args and self.no_args_is_help and not ctx.resilient_parsing:
            echo(ctx.get_help())
            raise Exit
        return super().parse_args(ctx, args)

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write the commands and the options of the group itself."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                panel = getattr(command, "rich_help_panel", None) or "Commands"
                groups.setdefault(panel, []).append((name, command.get_short_help_str()))
        _write({**groups, **_grouped(self, ctx)}, formatter)


def _grouped(command: Any, ctx: Any) -> dict[str, list[tuple[str, str]]]:
    groups: dict[str, list[tuple[str, str]]] = {"Arguments": []}
    for parameter in command.get_params(ctx):
        if (record := parameter.get_help_record(ctx)) is None:
            continue
        argument = parameter.param_type_name == "argument"
        name = parameter.metavar or record[0] if argument else record[0]
        panel = getattr(parameter, "rich_help_panel", None) or ("Arguments" if argument else _REST)
        groups.setdefault(panel, []).append((name, record[1]))
    rest = groups.pop(_REST, [])
    return groups | {_REST: rest}


def _write(groups: dict[str, list[tuple[str, str]]], formatter: Any) -> None:
    for title, rows in groups.items():
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)
