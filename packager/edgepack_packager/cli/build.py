"""The commands that pack a model: ``build``, and ``demo`` for the one that ships with edgepack.

Heavy imports live in the functions: ``edgepack --help`` loads no packager.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgepack.cli import screen
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EngineMissingError
from edgepack.extras import needed, require, together
from edgepack_packager.cli.bar import Bar

if TYPE_CHECKING:
    from edgepack_packager.build import Built
    from edgepack_packager.recipe import Recipe

Model = Annotated[
    str,
    typer.Argument(
        help="A name of `edgepack models`, OWNER/NAME[@REVISION] on the hub, a folder in its layout, or `demo`.",
        show_default=False,
    ),
]
Targets = Annotated[list[str], typer.Option("--target", "-t", help="gguf, mlx, onnx or all. Repeatable.")]
Quants = Annotated[list[str], typer.Option("--quant", "-q", help="f32, f16, q8, q4 or a target's own. Repeatable.")]
Out = Annotated[Path | None, typer.Option("--out", "-o", help="The bundle's folder.  [default: ./NAME.edgepack]")]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        help="Pack for sequences of up to so many tokens, as 4096 or 4k. Default: the model's own.",
        parser=screen.token_count,
        metavar="TOKENS",
        show_default=False,
    ),
]
Name = Annotated[
    str | None,
    typer.Option("--name", help="The bundle's name.  [default: the model's]", show_default=False),
]
AcceptLicence = Annotated[
    bool, typer.Option("--accept-licence", help="Say that you accept the model's licence, where it asks for that.")
]
Date = Annotated[
    str | None,
    typer.Option(
        help="The day that a chat template prints, or `passed`: the application passes it.  [default: a fixed day]",
        show_default=False,
    ),
]
KvCache = Annotated[
    Literal["f32", "f16", "q8"],
    typer.Option(
        help="The KV cache that onnx payloads have built in. An NVIDIA GPU needs f16, q8 is a quarter of f32; others "
        "choose at load."
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        "--max-kl",
        help="Seal no variant that loses more on text: KL divergence from the source, in nats.  [default: report it]",
        show_default=False,
    ),
]
NoChat = Annotated[bool, typer.Option("--no-chat", help="Leave out the chat template, of which nothing is then asked.")]
Unproven = Annotated[
    bool,
    typer.Option(
        "--unproven", help="Run no engine and no reference: read the tensors back, and seal the rest unproven."
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        "--draft",
        metavar="MODEL",
        help="Pack a smaller model with the same tokenizer beside it, which guesses what it says.",
        show_default=False,
    ),
]
DemoOut = Annotated[Path, typer.Option("--out", "-o", help="The demo bundle's folder.")]
Prompt = Annotated[str, typer.Option(help="What to ask the demo model.")]


def build(
    model: Model,
    target: Targets = ["all"],  # noqa: B006 - typer reads the default and never changes it
    quant: Quants = ["q4"],  # noqa: B006
    out: Out = None,
    context: Context = None,
    name: Name = None,
    accept_licence: AcceptLicence = False,
    date: Date = None,
    kv_cache: KvCache = "f32",
    max_kl: MaxKl = None,
    no_chat: NoChat = False,
    draft: Draft = None,
    unproven: Unproven = False,
    json: screen.AsJson = False,
) -> None:
    """Convert a model, prove that every variant is the same model, and seal the bundle."""
    from edgepack_packager.recipe import Recipe
    from edgepack_packager.targets import names

    building = _building()
    targets = tuple(
        dict.fromkeys(each for asked in target for each in (names() if asked.lower() == "all" else [asked]))
    )
    recipe = Recipe(
        targets, tuple(quant), context, unproven, name, accept_licence, date, kv_cache, max_kl, no_chat, draft
    )
    try:
        _show(_build(model, recipe, out), json)
    except building.VariantsFailedError as error:
        if error.built:
            _show(error.built, json)
        raise


def demo(out: DemoOut = Path("demo.edgepack"), prompt: Prompt = "What is edgepack?") -> None:
    """Pack the demo model for each engine that runs here, prove it, show the plan, and stream an answer."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli import plan as plans
    from edgepack.cli.spoken import Spoken
    from edgepack.loading import load, plan
    from edgepack_packager.recipe import Recipe
    from edgepack_packager.source import DEMO

    console = screen.out()
    if out.exists():
        screen.say(console, f"{out} is there already and is used as it is.\n")
    else:
        _building()
        _show(_build(DEMO, Recipe(_runnable(), ("q4",)), out))
        console.print()
    bundle = open_bundle(out)
    plans.show(bundle, plan(bundle))
    with load(bundle) as model, model.stream_chat([{"role": "user", "content": prompt}]) as stream:
        console.print(screen.styled("bold", f"\n> {prompt}"))
        spoken = Spoken()
        for chunk in stream:
            spoken.write(chunk.text)
        spoken.end("\n\n")
        speed = stream.result.timings.decode_tps or 0
        console.print(screen.styled("dim", f"{model.variant.id}: {speed:.0f} tokens/s. Ask more: edgepack run {out}"))


def _runnable() -> tuple[str, ...]:
    """Return the targets whose engine runs here, and say of each other why it is left out.

    Raises ``EngineMissingError`` where there is none.
    """
    from edgepack.device.hardware import detect
    from edgepack.engines import probe_all
    from edgepack_packager.targets import find, names

    supports = probe_all(detect())
    found = {name: supports[find(name).runtime] for name in names()}
    runnable = tuple(name for name, support in found.items() if support.devices)
    if not runnable:
        reasons = " ".join(f"{name}: {support.reason}" for name, support in found.items())
        installs = [support.install for support in found.values() if support.install]
        raise EngineMissingError(f"No engine can run here: {reasons}", hint=together(installs) or "edgepack doctor")
    for name in set(found) - set(runnable):
        screen.say(screen.err(), f"{name} is left out: {found[name].reason}")
    return runnable


def _building() -> ModuleType:
    """Return the module that builds. Raises ``ExtraMissingError`` where no more than an engine was installed."""
    with needed("A build", "build"):
        require("A build", "build")
        from edgepack_packager import build
    return build


def _build(model: str, recipe: Recipe, out: Path | None) -> Built:
    building = _building()
    with Interrupts() as interrupts, Bar(interrupts) as progress:
        built: Built = building.build(model, recipe, out, progress=progress)
    return built


def _show(built: Built, json: bool = False) -> None:
    from rich.text import Text

    from edgepack.cli.inspect import as_mapping, show

    if json:
        screen.as_json({"path": str(built.path)} | as_mapping(built.open()))
        return
    show(built.open())
    screen.say(screen.out(), Text.assemble("\nSealed ", (str(built.path), "bold")))
