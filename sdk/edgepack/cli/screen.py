"""How the commands speak: reports on standard output, everything else on standard error, colours on terminals only."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgepack.errors import visible

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress
    from rich.table import Table
    from rich.text import Text

BundlePath = Annotated[Path, typer.Argument(metavar="BUNDLE", help="The bundle's folder.", show_default=False)]
Backend = Annotated[str | None, typer.Option(help="Only this engine: gguf, onnx or mlx.", show_default=False)]
Variant = Annotated[str | None, typer.Option(help="Only this variant of the bundle.", show_default=False)]


def token_count(text: str) -> int:
    """Read a count of tokens: "4096", "4k" (4096) or "128k". Raises ``BadParameter`` for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,8})(k?)", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is no count of tokens; give one as 4096 or as 4k.")
    return int(found[1]) * (1024 if found[2] else 1)


Context = Annotated[
    int | None,
    typer.Option(
        help="Tokens of context, as 4096 or 4k. Default: what the bundle allows, at most 4096.",
        parser=token_count,
        metavar="TOKENS",
        show_default=False,
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(help="KV cache in f32, f16 or q8. Default: f32 for f32 variants, else f16.", show_default=False),
]
Threads = Annotated[
    int | None, typer.Option(help="Threads of the engine. Default: the cores it may use.", show_default=False)
]
BundleId = Annotated[
    str | None, typer.Option(help="Refuse any bundle but this: sha256:..., as verify prints it.", show_default=False)
]
Draft = Annotated[
    bool | None,
    typer.Option(
        help="Load the bundle's draft model, which guesses what the other says. Default: where edgepack tune found "
        "that it pays.",
        show_default=False,
    ),
]
Strict = Annotated[bool, typer.Option("--strict", help="Refuse a substitute for what would come first.")]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON on standard output.")]


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
    """Return a progress of several stages on standard error, each a line that stays, as ``bar`` otherwise."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = err()
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
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


def as_json(report: object) -> None:
    """Print a dataclass or a mapping as JSON on standard output."""
    plain: Any = asdict(report) if is_dataclass(report) and not isinstance(report, type) else report
    text = visible(json.dumps(plain, indent=2, ensure_ascii=False, default=_plain), keep="\n") + "\n"
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:  # "?" in the place of a character would be another report
        text = json.dumps(plain, indent=2, default=_plain) + "\n"
    sys.stdout.write(text)


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
