"""``edgepack engine``: the engines of the gguf runtime, and one that is compiled for the processor at hand.

Heavy imports live in the functions: ``edgepack --help`` loads no packager.
"""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgepack.cli import options, screen
from edgepack.cli.help import Command, Group
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EngineMissingError, UsageError
from edgepack_packager.cli.bar import Bar

if TYPE_CHECKING:
    from edgepack.runtime import Engine

RUNTIME = "gguf"
AUTO = "auto"

engine = typer.Typer(
    cls=Group,
    help="Compile llama.cpp for a processor, and choose an engine of gguf.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

For = Annotated[
    str,
    typer.Option(
        "--for",
        help="this, pi4, pi5, jetson, arm64 (any), x86-64-v3, x86-64-v4, x86-64 (any) or apple.",
        metavar="PROCESSOR",
    ),
]
Source = Annotated[
    Path | None,
    typer.Option(help="The sdist of llama-cpp-python. Default: by pip.", metavar="FILE.tar.gz", show_default=False),
]
Out = Annotated[
    Path | None,
    typer.Option("--out", "-o", help="Keep the wheel in this folder.", metavar="FOLDER", show_default=False),
]
ByCompiler = Annotated[
    Literal["system", "zig"] | None,
    typer.Option(
        help="What compiles: system or zig. Default: the system's where it can.", metavar="BY", show_default=False
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", "-j", min=1, help="Files to compile at once.", metavar="N", show_default=False),
]
Cuda = Annotated[bool, typer.Option("--cuda", help="For NVIDIA GPUs too; needs the CUDA toolkit.")]
Metal = Annotated[bool, typer.Option("--metal", help="For Apple's GPUs too; needs Apple's tools.")]
Vulkan = Annotated[bool, typer.Option("--vulkan", help="For GPUs by Vulkan too; needs its SDK.")]
Name = Annotated[
    str, typer.Argument(metavar="NAME", help=f"A name of `edgepack engine list`, or {AUTO}.", show_default=False)
]


@engine.command(cls=Command)
def build(
    processor: For = "this",
    source: Source = None,
    out: Out = None,
    compiler: ByCompiler = None,
    jobs: Jobs = None,
    cuda: Cuda = False,
    metal: Metal = False,
    vulkan: Vulkan = False,
    json: options.AsJson = False,
) -> None:
    """Compile llama.cpp for a processor. For this machine's, the engine is installed, and gguf takes it."""
    from msgspec import to_builtins

    from edgepack_packager.engine import build as building

    asked = frozenset(name for name, on in (("cuda", cuda), ("metal", metal), ("vulkan", vulkan)) if on)
    with Interrupts() as interrupts, Bar(interrupts) as progress:
        built = building.build(
            processor,
            source=source,
            out=out,
            accelerators=asked,  # type: ignore[arg-type]
            compiler=compiler,
            jobs=jobs,
            progress=progress,
        )
    used = _checked(built.version) if built.installed else None
    if json:
        screen.as_json(asdict(built) | {"facts": to_builtins(built.facts), "used": used})
        return
    console = screen.out()
    if built.wheel is not None:
        screen.say(console, screen.styled("bold", str(built.wheel)))
    if used is None:
        screen.say(console, "Install it on its machine: pip install --no-deps --no-index FILE.whl")
    else:
        state = "gguf takes it" if used else "another engine is preferred: edgepack engine use auto"
        screen.say(console, f"edgepack-llama {built.version} is installed, and computes right here; {state}.")
        screen.next_step("edgepack", "doctor")


@engine.command("list", cls=Command)
def list_(json: options.AsJson = False) -> None:
    """Show the engines that gguf can have, best first: which are here, which run, and which is used."""
    from rich.text import Text

    from edgepack.device.state import PREFERENCE, preferred

    found, wanted = _engines(), preferred(RUNTIME)
    if json:
        screen.as_json({"engines": [asdict(each) for each in found], "preferred": wanted})
        return
    rows = screen.table("", "engine", "version", "")
    for each in found:
        runs = "runs on " + ", ".join(each.devices) if each.devices else (each.reason or "").rstrip(".")
        runs += f", its variant {each.variant}" if each.devices and each.variant else ""
        style = "green" if each.used else "" if each.devices else "dim" if each.installed is None else "yellow"
        rows.add_row("*" if each.used else "", each.name, each.installed or "-", Text(runs, style))
    console = screen.out()
    console.print(rows)
    if wanted is not None:
        by = PREFERENCE + RUNTIME.upper()
        how = f"by {by}" if os.environ.get(by) else "free it with: edgepack engine use auto"
        screen.say(console, f"\n{wanted} is preferred, {how}.")
    elif not found[0].used:
        screen.say(console, "\nCompile one for this processor: edgepack engine build")
    else:
        screen.next_step("edgepack", "doctor")


@engine.command(cls=Command)
def use(name: Name) -> None:
    """Prefer an engine, whether it is the best or not; with `auto`, the best that runs is taken."""
    from edgepack.device.state import prefer

    if name == AUTO:
        prefer(RUNTIME, None)
        return
    known = {each.name: each for each in _engines()}
    if name not in known:
        raise UsageError(f"No engine is called {name!r}.", hint=f"Choose one of {', '.join((*known, AUTO))}.")
    if not known[name].devices:
        raise EngineMissingError(
            f"{name} cannot run here: {known[name].reason or 'it offers no device'}", hint="See: edgepack engine list"
        )
    prefer(RUNTIME, name)


@engine.command(cls=Command)
def remove() -> None:
    """Uninstall the engine that `edgepack engine build` installed."""
    from edgepack.device.state import prefer, preferred
    from edgepack_packager.engine import build as building
    from edgepack_packager.engine.wheel import DISTRIBUTION

    if next(each for each in _engines() if each.name == DISTRIBUTION).installed is None:
        raise EngineMissingError(f"{DISTRIBUTION} is not installed.", hint="See: edgepack engine list")
    building.remove()
    if preferred(RUNTIME) == DISTRIBUTION:
        prefer(RUNTIME, None)


def _engines() -> tuple[Engine, ...]:
    from edgepack import runtime

    found = runtime.find(RUNTIME)
    assert isinstance(found, runtime.Engines)
    return found.engines()


def _checked(version: str) -> bool:
    """Say whether the engine that was just installed is the one that is used.

    Raises ``EngineMissingError`` where it fails its selfcheck.
    """
    from importlib import invalidate_caches

    from edgepack_packager.engine.wheel import DISTRIBUTION

    invalidate_caches()  # pip has just changed what this interpreter found when it began
    own = next(each for each in _engines() if each.name == DISTRIBUTION)
    if own.installed != version or not own.devices:
        raise EngineMissingError(
            f"{DISTRIBUTION} {version} was installed, and is not used: {own.reason or f'{own.installed} is there'}",
            hint="Remove it with: edgepack engine remove",
        )
    return own.used
