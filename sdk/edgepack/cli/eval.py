"""``edgepack eval``: how well a bundle knows a text, and how far it is from another bundle or variant on it."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.screen import (
    AsJson,
    Backend,
    BundlePath,
    Context,
    KvCache,
    Threads,
    Variant,
    as_json,
    out,
    say,
    steps,
    table,
    token_count,
)

if TYPE_CHECKING:
    from edgepack.decoding.repro import Setup
    from edgepack.measuring.evaluate import EvalReport

Text = Annotated[Path, typer.Option(metavar="FILE", help="The text, in UTF-8.", show_default=False)]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="BUNDLE",
        help="A bundle to compare with, which is taken for the truth. Default: none, or BUNDLE itself where one of "
        "the two options below chooses another variant of it.",
        show_default=False,
    ),
]
AgainstBackend = Annotated[
    str | None, typer.Option(help="Compare with the variant that runs on this engine.", show_default=False)
]
AgainstVariant = Annotated[str | None, typer.Option(help="Compare with this variant.", show_default=False)]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Read only so many tokens of the text, as 4096 or 4k.",
        parser=token_count,
        metavar="TOKENS",
        show_default=False,
    ),
]


def eval(
    bundle: BundlePath,
    text: Text,
    backend: Backend = None,
    variant: Variant = None,
    against: Against = None,
    against_backend: AgainstBackend = None,
    against_variant: AgainstVariant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    limit: Limit = None,
    json: AsJson = False,
) -> None:
    """Measure perplexity on your own text; against another bundle or variant, KL divergence and top-1 agreement."""
    from edgepack.cli.textfile import read
    from edgepack.isolation.isolate import available
    from edgepack.loading import load
    from edgepack.measuring.evaluate import evaluate

    words = read(text)
    opening = partial(load, context=context, kv_cache=kv_cache, threads=threads, isolate=available())
    with ExitStack() as models, steps() as progress:
        task = progress.add_task("Evaluating", total=None)
        model = models.enter_context(opening(bundle, backend, variant=variant))
        other = None
        if against or against_backend or against_variant:
            other = models.enter_context(opening(against or bundle, against_backend, variant=against_variant))
        report = evaluate(
            model,
            words,
            against=other,
            limit=limit,
            progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if json:
        as_json(report)
    else:
        show(report)


def show(report: EvalReport) -> None:
    """Print a report: what was read by which models, then their figures."""
    from rich.text import Text

    console, against = out(), report.against
    say(console, Text(described(report.model.setup), "bold"))
    if against is not None:
        say(console, Text(f"against {described(against.other.setup)}"))
    say(
        console,
        f"{report.tokens} tokens scored ({report.bytes} bytes), {report.windows} window(s) of at most {report.context}",
    )
    found = [report.model] if against is None else [report.model, against.other]
    columns = ["model", "against"][: len(found)]
    rows = table("", *columns, right=columns)
    rows.add_row("perplexity", *(f"{each.perplexity:.4f}" for each in found))
    rows.add_row("bits per byte", *(f"{each.bits_per_byte:.4f}" for each in found))
    if against is not None:
        rows.add_row("perplexity ratio", f"{against.perplexity_ratio:.4f}")
        rows.add_row("KL(against || model), nats a token", f"{against.kl:.3g}")
        rows.add_row("same likeliest token", f"{against.top1:.2%}")
    console.print()
    console.print(rows)


def described(setup: Setup) -> str:
    """Return what a model is and what it runs on, in a line."""
    return f"{Path(setup.bundle).name} {setup.variant}, {setup.backend} on {setup.device}"
