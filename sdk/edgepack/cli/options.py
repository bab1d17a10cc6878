"""The arguments and options that several commands share: each means the same wherever it stands, its short form too.

``-b`` is an engine, ``-c`` a context, ``-o`` what is written, ``-q`` a quantisation and ``-t`` a target. The groups are
the headings of a command's help.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final

import typer

PROMPT: Final = "Prompt"
ANSWER: Final = "Answer"
SAMPLING: Final = "Sampling"
ENGINE: Final = "Engine"
TRUST: Final = "Trust"
MEASUREMENT: Final = "Measurement"
QUESTION: Final = "Question"


def token_count(text: str) -> int:
    """Read a count of tokens: "4096", "4k" (4096) or "128k". Raises ``BadParameter`` for anything else."""
    found = re.fullmatch(r"([1-9]\d{0,8})(k?)", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{text!r} is no count of tokens; give one as 4096 or as 4k.")
    return int(found[1]) * (1024 if found[2] else 1)


def _engines(incomplete: str) -> list[str]:
    from edgepack import runtime

    return [name for name in runtime.names() if name.startswith(incomplete)]


BundlePath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="The bundle's folder, or the name of one that is installed.", show_default=False
    ),
]
BundleOrUrl = Annotated[
    str,
    typer.Argument(
        metavar="BUNDLE|URL",
        help="The bundle's folder, the name of one that is installed, or the URL of a server (its key: "
        "EDGEPACK_API_KEY; one of its models: URL#MODEL).",
        show_default=False,
    ),
]
Backend = Annotated[
    str | None,
    typer.Option(
        "--backend",
        "-b",
        help="Only this engine: gguf, onnx or mlx.",
        metavar="ENGINE",
        autocompletion=_engines,
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Variant = Annotated[
    str | None,
    typer.Option(help="Only this variant of the bundle.", metavar="ID", show_default=False, rich_help_panel=ENGINE),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        help="Tokens of context, as 4096 or 4k. Default: what the bundle allows, at most 4096.",
        parser=token_count,
        metavar="TOKENS",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Sequences = Annotated[
    int,
    typer.Option(
        "--parallel",
        min=1,
        help="Texts at a time, each with the whole context.",
        metavar="N",
        rich_help_panel=ENGINE,
    ),
]
KvCache = Annotated[
    str | None,
    typer.Option(
        help="KV cache in f32, f16 or q8. Default: f32 for f32 variants, else f16.",
        metavar="TYPE",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        help="Threads of the engine. Default: what edgepack tune found, or the cores it may use.",
        metavar="N",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Draft = Annotated[
    bool | None,
    typer.Option(
        help="Load the bundle's draft model, which guesses what the other says. Default: where edgepack tune found "
        "that it pays.",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Warm = Annotated[
    bool | None,
    typer.Option(
        help="Begin with the state of a system prompt that lies beside the payload. Default: where this device made "
        "it, or a policy admits the bundle.",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Strict = Annotated[
    bool, typer.Option("--strict", help="Refuse a substitute for what would come first.", rich_help_panel=ENGINE)
]
BundleId = Annotated[
    str | None,
    typer.Option(
        help="Refuse any bundle but this: sha256:..., as verify prints it.",
        metavar="ID",
        show_default=False,
        rich_help_panel=TRUST,
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        help="Refuse a bundle that this policy.toml does not admit. Default: EDGEPACK_POLICY; the machine's and the "
        "store's apply besides.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=TRUST,
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Report as JSON on standard output, a failure too.")]

Raw = Annotated[
    bool,
    typer.Option("--raw", help="Continue the text as it is, without the chat template.", rich_help_panel=PROMPT),
]
Date = Annotated[
    str | None,
    typer.Option(
        help="The day that the chat template prints, as YYYY-MM-DD.",
        metavar="DAY",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Stop = Annotated[
    list[str] | None,
    typer.Option(
        help="End the answer before this text. Repeatable.", metavar="TEXT", show_default=False, rich_help_panel=ANSWER
    ),
]
MaxTokens = Annotated[
    int | None,
    typer.Option(help="Tokens of the answer, at most.", metavar="N", show_default=False, rich_help_panel=ANSWER),
]
TopP = Annotated[
    float | None,
    typer.Option(
        help="Choose among the likeliest tokens that together have this probability.",
        metavar="P",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
TopK = Annotated[
    int | None,
    typer.Option(
        help="Choose among so many likeliest tokens; 0: all.", metavar="N", show_default=False, rich_help_panel=SAMPLING
    ),
]
MinP = Annotated[
    float | None,
    typer.Option(
        help="Choose among tokens at least so likely, as a part of the likeliest.",
        metavar="P",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float | None,
    typer.Option(
        help="Make what was said less likely; 1: do not.", metavar="X", show_default=False, rich_help_panel=SAMPLING
    ),
]
