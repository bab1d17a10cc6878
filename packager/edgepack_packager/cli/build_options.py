"""The arguments and options that ``edgepack build`` has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from edgepack.cli import options

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
Exporter = Annotated[
    Literal["optimum", "mlx-lm"] | None,
    typer.Option(
        help="Have another program write a model that edgepack has no family for, in an environment of its own: "
        "optimum (ONNX) or mlx-lm (MLX).",
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
        help="Run no engine and no reference, read nothing back: seal what was written unproven.",
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
        metavar="TEXT",
        help="The text of --quality calibrated: a file, JSON lines of messages, `built-in`, or `auto`: the model's.",
        show_default=False,
        rich_help_panel=WHAT,
    ),
]
Receipt = Annotated[
    str | None,
    typer.Option(
        metavar="TEXT",
        help="Measure the loss on 8192 tokens held out: a file's, or `built-in`. Default: on fewer, where it is quick.",
        show_default=False,
        rich_help_panel=PROOF,
    ),
]
SourceKey = Annotated[
    str | None,
    typer.Option(
        "--source-key",
        help="Refuse a source whose model.sig is not of this public key, or does not have its files.",
        metavar="FILE",
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
