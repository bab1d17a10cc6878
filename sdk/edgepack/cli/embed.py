"""``edgepack embed``: the vectors of texts, a line of JSON each."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from edgepack.cli import textfile
from edgepack.cli.help import examples
from edgepack.cli.options import (
    PROMPT,
    Backend,
    BundleId,
    BundlePath,
    Context,
    KvCache,
    PolicyFile,
    Strict,
    Threads,
    Variant,
)
from edgepack.cli.run_options import Isolate, Verify
from edgepack.errors import UsageError

Texts = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[TEXT]...", help="The texts. Without one: the lines of standard input.", show_default=False
    ),
]
Prompt = Annotated[
    str | None,
    typer.Option(
        help="The name of the bundle's prompt that stands before each, as query; edgepack inspect shows them. "
        'Default: the bundle\'s own; "" is none.',
        metavar="NAME",
        show_default=False,
        rich_help_panel=PROMPT,
    ),
]


@examples(
    'edgepack embed qwen3.edgepack "What is edgepack?" --prompt query',
    "edgepack embed qwen3.edgepack < sentences.txt > vectors.jsonl",
)
def embed(
    bundle: BundlePath,
    texts: Texts = None,
    prompt: Prompt = None,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    isolate: Isolate = False,
    strict: Strict = False,
    id: BundleId = None,
    policy: PolicyFile = None,
    verify: Verify = None,
) -> None:
    """Print the vector of each text as a line of JSON: its text, and its embedding."""
    from edgepack.loading import load

    asked = _lines() if texts is None else [textfile.argument(text) for text in texts]
    with load(
        bundle,
        backend,
        context,
        kv_cache,
        variant=variant,
        threads=threads,
        isolate=isolate,
        strict=strict,
        id=id,
        policy=policy,
        verify=verify,
    ) as model:
        for text, vector in zip(asked, model.embed(asked, prompt), strict=True):
            # The fewest digits that mean the same float32.
            numbers = [float(str(number)) for number in vector]
            typer.echo(json.dumps({"text": text, "embedding": numbers}, ensure_ascii=False))


def _lines() -> list[str]:
    typed = sys.stdin is not None and sys.stdin.isatty()
    lines = [] if typed else textfile.standard_input().splitlines()
    if not lines:
        raise UsageError("There is no text.", hint="Give it as an argument or on standard input.")
    return lines
