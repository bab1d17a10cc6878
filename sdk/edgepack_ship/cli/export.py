"""``edgepack export``: a bundle in the form of another system."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, BundlePath
from edgepack_ship.cli import SHIP

if TYPE_CHECKING:
    from edgepack_ship.exports.export import Exported


def _systems(incomplete: str) -> list[str]:
    from edgepack_ship.exports.export import systems

    return [name for name in systems() if name.startswith(incomplete)]


To = Annotated[
    str,
    typer.Option(
        "--to",
        help="ollama, lmstudio, llamacpp, mlx, ort-genai, docker-model, apple, android or vllm.",
        metavar="SYSTEM",
        autocompletion=_systems,
    ),
]
Out = Annotated[Path, typer.Option("--out", "-o", help="The new folder.", metavar="FOLDER")]
Variant = Annotated[
    str | None,
    typer.Option(
        "--variant",
        help="This variant. Default: the smallest that is proven, of those that the system takes.",
        metavar="ID",
        show_default=False,
    ),
]
Source = Annotated[
    str | None,
    typer.Option(
        "--source",
        help="vllm: the model that the bundle was built from. Default: the recorded repository.",
        metavar="MODEL",
        show_default=False,
    ),
]
Adapters = Annotated[
    list[Path] | None,
    typer.Option(
        "--adapter", help="vllm: an adapter that the build merged, in its order.", metavar="FOLDER", show_default=False
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an export that is there.")]


@examples(
    "edgepack export smollm2.edgepack --to ollama -o for-ollama",
    "edgepack export smollm2.edgepack --to mlx --variant mlx-4bit -o for-the-mac",
    "edgepack export mine.edgepack --to vllm --source ./mine -o for-vllm",
    heading=SHIP,
)
def export(
    bundle: BundlePath,
    to: To,
    out: Out,
    variant: Variant = None,
    source: Source = None,
    adapter: Adapters = None,
    force: Force = False,
    json: AsJson = False,
) -> None:
    """Write a bundle in the form of another system, and say what that one does otherwise."""
    from dataclasses import asdict

    from edgepack.cli import screen
    from edgepack.cli.interrupts import Interrupts
    from edgepack_ship.exports.export import export as write

    with Interrupts(), screen.bar() as progress:
        task = progress.add_task(f"Exporting to {to}", total=None)
        made = write(
            bundle,
            to,
            out,
            variant=variant,
            source=source,
            adapters=adapter or (),
            force=force,
            progress=lambda _, count: progress.advance(task, count),
        )
    if json:
        screen.as_json(asdict(made))
    else:
        _show(made)


def _show(made: Exported) -> None:
    from edgepack.cli import screen
    from edgepack.device.memory import human
    from edgepack.errors import visible

    console = screen.out()
    screen.say(console, screen.styled("bold", str(made.path), f"  {human(made.size)}"))
    of = f"variant {made.variant}" if made.variant else "the source"
    screen.say(console, f"{of} of sha256:{made.id[:12]}, for {made.system}")
    for each in made.differs:
        screen.say(console, screen.styled("yellow", "otherwise", f": {visible(each)}"))
    screen.say(console, f"\nIn {made.path}:")
    for command in made.use:
        screen.say(console, f"  {command}")
