"""The commands that pack a model: ``build``, and ``demo`` for the one that ships with edgepack.

Heavy imports live in the functions: ``edgepack --help`` loads no packager.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from edgepack.cli import options, screen
from edgepack.cli.help import examples
from edgepack.cli.interrupts import Interrupts
from edgepack.errors import EngineMissingError
from edgepack.extras import needed, require, together
from edgepack_packager.cli.bar import Bar

if TYPE_CHECKING:
    from edgepack_packager.build import Built
    from edgepack_packager.recipe import Recipe

WHAT, PROOF = "What is packed", "Proof and licence"


def _known(incomplete: str) -> list[str]:
    from edgepack_packager.source import DEMO, catalog

    return [name for name in (DEMO, *(e.alias for e in catalog.entries())) if name.startswith(incomplete)]


def _targets(incomplete: str) -> list[str]:
    from edgepack_packager.targets import names

    return [name for name in (*names(), "all") if name.startswith(incomplete)]


Model = Annotated[
    str,
    typer.Argument(
        help="A name of `edgepack models`, OWNER/NAME[@REVISION] on the hub, a folder in its layout, a GGUF file, or "
        "`demo`.",
        metavar="MODEL",
        autocompletion=_known,
        show_default=False,
    ),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        "-t",
        help="gguf, mlx, onnx or all. Repeatable. Default: all, or those that --quant names.",
        metavar="TARGET",
        autocompletion=_targets,
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Quants = Annotated[
    list[str] | None,
    typer.Option(
        "--quant",
        "-q",
        help="f32, f16, q8, q4 or a target's own, for all targets or for one, as gguf:q5_k_m; auto: the fewest bytes "
        "within --max-kl. Repeatable. Default: q4, unless --fit, --bits or --recipe says.",
        metavar="[TARGET:]QUANT",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Fit = Annotated[
    list[str] | None,
    typer.Option(
        help="Choose each matrix's bits so that weights of this size, as 900MB, or a device of `edgepack fit`, as "
        "pi5-4gb at the context, lose least. Repeatable.",
        metavar="[TARGET:]SIZE|DEVICE",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Bits = Annotated[
    list[float] | None,
    typer.Option(
        min=1,
        max=32,
        help="The same for so many bits a weight on average, as 4.5. Repeatable.",
        metavar="BITS",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
RecipeFile = Annotated[
    Path | None,
    typer.Option(
        "--recipe",
        help="Give each matrix the bits that a recipe.toml says: a bundle's, edited or not, or one of your own.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        "-o",
        help="The bundle's folder. Default: ./NAME.edgepack",
        metavar="FOLDER",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Force = Annotated[
    bool,
    typer.Option("--force", help="Replace an older bundle there, once the new one is sealed.", rich_help_panel=WHAT),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        help="Pack for sequences of up to so many tokens, as 4096 or 4k. Default: the model's own.",
        parser=options.token_count,
        metavar="TOKENS",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Name = Annotated[
    str | None,
    typer.Option(
        help="The bundle's name. Default: the model's.", metavar="NAME", show_default=False, rich_help_panel=WHAT
    ),
]
AcceptLicence = Annotated[
    bool,
    typer.Option(
        "--accept-licence",
        help="Say that you accept the model's licence, where it asks for that.",
        rich_help_panel=PROOF,
    ),
]
Date = Annotated[
    str | None,
    typer.Option(
        help="The day that a chat template prints, or `passed`: the application passes it. Default: a fixed day.",
        metavar="DAY",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
KvCache = Annotated[
    Literal["f32", "f16", "q8"],
    typer.Option(
        help="The KV cache that onnx payloads have built in. An NVIDIA GPU needs f16, q8 is a quarter of f32; others "
        "choose at load.",
        metavar="TYPE",
        rich_help_panel=WHAT,
    ),
]
MaxKl = Annotated[
    float | None,
    typer.Option(
        help="Seal no variant that loses more on text: KL divergence from the source, in nats. Default: report it.",
        metavar="NATS",
        show_default=False,
        rich_help_panel=PROOF,
    ),
]
NoChat = Annotated[
    bool,
    typer.Option(
        "--no-chat", help="Leave out the chat template, of which nothing is then asked.", rich_help_panel=WHAT
    ),
]
Thinks = Annotated[
    bool,
    typer.Option(
        "--thinks",
        help="Say that the model thinks between <think> and </think>, where its template does not.",
        rich_help_panel=WHAT,
    ),
]
Unproven = Annotated[
    bool,
    typer.Option(
        "--unproven",
        help="Run no engine and no reference: read the tensors back, and seal the rest unproven.",
        rich_help_panel=PROOF,
    ),
]
Quality = Annotated[
    Literal["plain", "searched", "calibrated"] | None,
    typer.Option(
        help="What chooses the scales of fewer than 8 bits. Default: the rule of each scheme's name.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Calibrate = Annotated[
    str | None,
    typer.Option(
        help="The text of --quality calibrated: a file, JSON lines of messages, `built-in`, or `auto`: the model's.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Receipt = Annotated[
    str | None,
    typer.Option(
        help="Measure the loss on 8192 tokens held out: a file's, or `built-in`. Default: on fewer, where it is quick.",
        show_default=False,
        rich_help_panel=PROOF,
    ),
]
Adapters = Annotated[
    list[str] | None,
    typer.Option(
        help="Merge a LoRA of PEFT or mlx-lm, its deltas times a scale. Repeatable, in order.",
        metavar="FOLDER[:SCALE]",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Pack a smaller model with the same tokenizer beside it, which guesses what it says.",
        autocompletion=_known,
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
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
)
def build(
    model: Model,
    target: Targets = None,
    quant: Quants = None,
    fit: Fit = None,
    bits: Bits = None,
    recipe: RecipeFile = None,
    out: Out = None,
    force: Force = False,
    context: Context = None,
    quality: Quality = None,
    calibrate: Calibrate = None,
    kv_cache: KvCache = "f32",
    adapter: Adapters = None,
    draft: Draft = None,
    name: Name = None,
    date: Date = None,
    no_chat: NoChat = False,
    thinks: Thinks = False,
    accept_licence: AcceptLicence = False,
    max_kl: MaxKl = None,
    receipt: Receipt = None,
    unproven: Unproven = False,
    json: options.AsJson = False,
) -> None:
    """Convert a model, prove that every variant is the same model, and seal the bundle."""
    building = _building()
    from edgepack_packager.recipe import Recipe

    quants = _quants(quant, fit, bits, recipe)
    targets = _asked(target, quants, recipe)
    asked = Recipe(targets, tuple(quants), context, unproven, name, accept_licence, date, kv_cache, max_kl, no_chat)
    asked = replace(asked, draft=draft, thinks=thinks, adapters=tuple(adapter or ()), calibrate=calibrate)
    asked = replace(asked, quality=quality, receipt=receipt, table=None if recipe is None else str(recipe))
    try:
        built = _build(model, asked, out, force)
    except building.VariantsFailedError as error:
        if error.built:
            _show(error.built, json)
        raise
    _show(built, json)
    if not json:
        screen.next_step("edgepack", "run", str(built.path))


def _quants(
    quants: list[str] | None, fit: list[str] | None, bits: list[float] | None, recipe: Path | None
) -> list[str]:
    """Return the quantisations, goals among them: q4 where nothing else says what to build."""
    from edgepack_packager.allocation.goals import of_fit

    goals = [*map(of_fit, fit or []), *(f"{round(each, 3):g}bits" for each in bits or [])]
    return [*(quants or []), *goals] or ([] if recipe else ["q4"])


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
