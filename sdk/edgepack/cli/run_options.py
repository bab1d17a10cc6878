"""The arguments and options that ``edgepack run`` has alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from edgepack.cli.options import ANSWER, ENGINE, PROMPT, SAMPLING, TRUST

Prompt = Annotated[
    str | None,
    typer.Argument(metavar="PROMPT", help="What to ask. Without it: standard input, or an interactive chat."),
]
System = Annotated[
    str | None,
    typer.Option(help="Begin with this system prompt.", metavar="TEXT", show_default=False, rich_help_panel=PROMPT),
]
SystemFile = Annotated[
    Path | None,
    typer.Option(
        help="Begin with the system prompt in this file.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option(
        "--var",
        help='Set a variable of the chat template. A value that is JSON (true, 3, [1], "3") is that value, any other '
        "is text. Repeatable.",
        metavar="NAME=VALUE",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Tools = Annotated[
    Path | None,
    typer.Option(
        help="Offer the tools that a file defines, in JSON. The answer is printed when whole, each call as a line "
        "of JSON.",
        metavar="FILE",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Think = Annotated[
    bool | None,
    typer.Option(
        "--think/--no-think",
        help="Think before the answer, or not, where the model has a choice. A thought is dim on a terminal, left out "
        "in a pipe, and reasoning in the JSON.",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
ThinkingTokens = Annotated[
    int | None,
    typer.Option(
        help="Close the thought after so many tokens, and answer.",
        metavar="N",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
ControlTokens = Annotated[
    str | None,
    typer.Option(
        help="What names of special tokens in a prompt are: text or parse.",
        metavar="AS",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
OnOverflow = Annotated[
    str | None,
    typer.Option(
        help="A prompt that is too long: error, truncate_middle or rolling.",
        metavar="DO",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="FILE|JSON",
        help="Bind the answer to this JSON schema, or the one in a file.",
        show_default=False,
        rich_help_panel=ANSWER,
    ),
]
OldSchema = Annotated[str | None, typer.Option("--json-schema", hidden=True)]  # what --schema was called first
Bound = Annotated[
    str | None,
    typer.Option(
        help="Bind the answer to this regular expression.",
        metavar="REGEX",
        show_default=False,
        rich_help_panel=ANSWER,
    ),
]
GrammarFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Bind the answer to this Lark grammar.", show_default=False, rich_help_panel=ANSWER
    ),
]
Logprobs = Annotated[
    bool, typer.Option("--logprobs", help="Add each token's logprob to the JSON.", rich_help_panel=ANSWER)
]
NBest = Annotated[
    int | None,
    typer.Option(
        help="Add so many likeliest tokens beside each to the JSON.",
        metavar="N",
        show_default=False,
        rich_help_panel=ANSWER,
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(
        help="How far from the likeliest tokens; 0: never.", metavar="T", show_default=False, rich_help_panel=SAMPLING
    ),
]
Seed = Annotated[
    int | None,
    typer.Option(
        help="Draw the same again. Default: a seed by chance.",
        metavar="N",
        show_default=False,
        rich_help_panel=SAMPLING,
    ),
]
PromptLookup = Annotated[
    bool | None,
    typer.Option(
        help="Check guessed tokens in one step. Default: what edgepack tune found to pay.",
        show_default=False,
        rich_help_panel=ENGINE,
    ),
]
Isolate = Annotated[
    bool, typer.Option("--isolate", help="Run the engine in a process of its own.", rich_help_panel=ENGINE)
]
Verify = Annotated[
    str | None,
    typer.Option(
        help="Read every file's sha256: always, or where it may have changed (remembered, the default).",
        metavar="WHEN",
        show_default=False,
        rich_help_panel=TRUST,
    ),
]
AsMarkdown = Annotated[
    bool, typer.Option("--markdown", help="Render answers as Markdown in a terminal.", rich_help_panel=ANSWER)
]
Stats = Annotated[
    bool,
    typer.Option("--stats", help="Tell tokens per second after an answer, on standard error.", rich_help_panel=ANSWER),
]
