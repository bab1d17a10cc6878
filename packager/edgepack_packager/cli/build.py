"""The commands that pack a model: ``build``, and ``demo`` for the one that ships with edgepack.

Heavy imports live in the functions: ``edgepack --help`` loads no packager.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli import options, screen
from edgepack.cli.help import examples
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EngineMissingError, UsageError
from edgepack.extras import needed, require, together
from edgepack_packager.cli import build_options as asks
from edgepack_packager.cli.bar import Bar

if TYPE_CHECKING:
    from edgepack_packager.build import Built
    from edgepack_packager.recipe import Recipe

DemoOut = Annotated[Path, typer.Option("--out", "-o", help="The demo bundle's folder.", metavar="FOLDER")]
Prompt = Annotated[str, typer.Option(help="What to ask the demo model.", metavar="TEXT")]


@examples(
    "edgepack build smollm2-135m",
    "edgepack build Qwen/Qwen3-0.6B -t gguf -q q8 -c 4k -o qwen.edgepack",
    "edgepack build ./my-finetune -q gguf:q5_k_m -q mlx:8bit --force",
    "edgepack build ./my-finetune --calibrate notes.txt --receipt built-in",
    "edgepack build smollm2-135m -t gguf --fit 90MB",
    "edgepack build ~/Downloads/SmolLM2-135M-Instruct.Q8_0.gguf -t onnx",
    "edgepack build smollm2-135m --adapter ./my-lora --adapter ./my-style:0.5",
    "edgepack build ./my-gpt2 --exporter optimum",
)
def build(
    model: asks.Model,
    target: asks.Targets = None,
    quant: asks.Quants = None,
    fit: asks.Fit = None,
    bits: asks.Bits = None,
    recipe: asks.RecipeFile = None,
    out: asks.Out = None,
    force: asks.Force = False,
    context: asks.Context = None,
    quality: asks.Quality = None,
    calibrate: asks.Calibrate = None,
    kv_cache: asks.KvCache = "f32",
    adapter: asks.Adapters = None,
    draft: asks.Draft = None,
    name: asks.Name = None,
    date: asks.Date = None,
    no_chat: asks.NoChat = False,
    thinks: asks.Thinks = False,
    accept_licence: asks.AcceptLicence = False,
    max_kl: asks.MaxKl = None,
    receipt: asks.Receipt = None,
    unproven: asks.Unproven = False,
    exporter: asks.Exporter = None,
    source_key: asks.SourceKey = None,
    json: options.AsJson = False,
) -> None:
    """Convert a model, prove that every variant is the same model, and seal the bundle."""
    building = _building()
    from edgepack_packager.recipe import Recipe

    if exporter is None:
        quants = _quants(quant, fit, bits, recipe)
        targets = _asked(target, quants, recipe)
    else:
        quants, targets = _exported(exporter, quant, fit, bits), tuple(target or ())
    asked = Recipe(targets, tuple(quants), context, unproven, name, accept_licence, date, kv_cache, max_kl, no_chat)
    asked = replace(asked, draft=draft, thinks=thinks, adapters=tuple(adapter or ()), calibrate=calibrate)
    asked = replace(asked, quality=quality, receipt=receipt, table=None if recipe is None else str(recipe))
    asked = replace(asked, exporter=exporter, source_key=source_key)
    try:
        built = _build(model, asked, out, force)
    except building.VariantsFailedError as error:
        if error.built:
            _show(error.built, json)
        raise
    _show(built, json)
    if not json:
        screen.next_step("edgepack", screen.use_of(built.manifest), str(built.path))


def _quants(
    quants: list[str] | None, fit: list[str] | None, bits: list[float] | None, recipe: Path | None
) -> list[str]:
    """Return the quantisations, goals among them: q4 where nothing else says what to build."""
    from edgepack_packager.allocation.goals import of_fit

    goals = [*map(of_fit, fit or []), *(f"{round(each, 3):g}bits" for each in bits or [])]
    return [*(quants or []), *goals] or ([] if recipe else ["q4"])


def _exported(exporter: str, quants: list[str] | None, fit: list[str] | None, bits: list[float] | None) -> list[str]:
    """Return the quantisations that an exporter is asked for. Raises ``UsageError`` for what chooses bits."""
    for option, given in (("--fit", fit), ("--bits", bits)):
        if given:
            raise UsageError(
                f"{option} was given with --exporter {exporter}, which chooses no bits.", hint="Leave one of them out."
            )
    return quants or []


def _asked(targets: list[str] | None, quants: list[str], recipe: Path | None) -> tuple[str, ...]:
    """Return the targets to build: all of them for "all", and without any those that every quantisation names, with
    those of the recipe; of all, a device leaves those that have an engine there."""
    from edgepack_packager.allocation import goals, table
    from edgepack_packager.recipe import targets_of
    from edgepack_packager.targets import names

    named = targets_of(quants) if all(":" in quant for quant in quants) else []
    named += [entry.target for entry in table.read(recipe).entries] if recipe and not quants else []
    named = named or goals.served(quants)
    asked = targets or named or ["all"]
    return tuple(dict.fromkeys(each for name in asked for each in (names() if name.lower() == "all" else [name])))


@examples("edgepack demo", 'edgepack demo --prompt "What is a token?"')
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
        console.print(screen.styled("dim", f"{model.variant.id}: {speed:.0f} tokens/s"))
    screen.next_step("edgepack", "run", str(out))


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
    for name in (name for name in found if name not in runnable):
        install = found[name].install
        way = f" It comes with: {install}" if install else ""
        screen.say(screen.err(), f"{name} is left out: {found[name].reason}{way}")
    return runnable


def _building() -> ModuleType:
    """Return the module that builds. Raises ``ExtraMissingError`` where no more than an engine was installed."""
    with needed("A build", "build"):
        require("A build", "build")
        from edgepack_packager import build
    return build


def _build(model: str, recipe: Recipe, out: Path | None, force: bool = False) -> Built:
    building = _building()
    with Interrupts() as interrupts, Bar(interrupts) as progress:
        built: Built = building.build(model, recipe, out, force=force, progress=progress)
    return built


def _show(built: Built, json: bool = False) -> None:
    from rich.text import Text

    from edgepack.cli.inspect import as_mapping, show

    if json:
        screen.as_json({"path": str(built.path)} | as_mapping(built.open()))
        return
    show(built.open())
    screen.say(screen.out(), Text.assemble("\nSealed ", (str(built.path), "bold")))
