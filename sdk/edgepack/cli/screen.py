"""How the commands speak: reports on standard output, everything else on standard error, colours on terminals only."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

from edgepack.cli import reports

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

    from edgepack.bundle.manifest import Manifest


def out() -> Console:
    """Return the console of reports: standard output."""
    from edgepack.cli.console import PlainConsole

    return PlainConsole()


def err() -> Console:
    """Return the console of everything that is not a report: standard error."""
    from edgepack.cli.console import PlainConsole

    return PlainConsole(stderr=True)


def say(console: Console, text: str | Text) -> None:
    """Print a line: broken between words where a terminal would cut it, and whole anywhere else."""
    console.print(text, soft_wrap=not console.is_terminal)


def styled(style: str, text: str, rest: str = "") -> Text:
    """Return a line that begins in a style: "bold", "dim" or a colour."""
    from rich.text import Text

    return Text.assemble((text, style), rest)


def bar() -> Progress:
    """Return a progress bar for bytes on standard error; invisible unless that is a terminal."""
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = err()
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def steps() -> Progress:
    """Return a progress bar for counted steps, as ``bar``."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    console = err()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)


def stages() -> Progress:
    """Return a progress of several stages on standard error, each a line that stays, as ``bar`` otherwise.

    A stage that runs tells how long it will still take, one that is over how long it took. A title that is too long
    for its line goes on in the next, and leaves the figures whole.
    """
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    from rich.table import Column

    console = err()
    figures = [Column(no_wrap=True, min_width=width, justify="right") for width in (4, 5)]
    left = TimeRemainingColumn(compact=True, elapsed_when_finished=True, table_column=figures[1])
    columns = (
        TextColumn("{task.description}", markup=False, table_column=Column(overflow="fold")),
        BarColumn(min(40, console.width // 4), table_column=Column(no_wrap=True)),
        TaskProgressColumn(table_column=figures[0]),
        left,
    )
    return Progress(*columns, console=console, disable=not console.is_terminal)


def table(*columns: str, right: Iterable[str] = ()) -> Table:
    """Return an empty table without frames; the columns named in ``right`` hold numbers."""
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for column in columns:
        made.add_column(column, justify="right" if column in set(right) else "left", no_wrap=True)
    if made.columns:
        made.columns[-1].no_wrap = False
        made.columns[-1].overflow = "fold"
    return made


def facts(pairs: Iterable[tuple[str, str]]) -> Table:
    """Return names and values, aligned; values may wrap."""
    from rich.table import Table
    from rich.text import Text

    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="dim", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in pairs:
        made.add_row(name, Text(value))
    return made


def next_step(*words: str) -> None:
    """Name the command that comes next, on standard error; only where a person reads standard output."""
    if sys.stdout.isatty():
        err().print(styled("dim", "Next: ", shlex.join(words)), soft_wrap=True)


def use_of(manifest: Manifest) -> str:
    """Return the command that uses a bundle."""
    return "run" if manifest.embedding is None else "embed"


def as_json(report: object) -> None:
    """Report a dataclass or a mapping as JSON: the command's one document, which is written when it ends."""
    plain: Any = asdict(report) if is_dataclass(report) and not isinstance(report, type) else report
    reports.add(plain)
