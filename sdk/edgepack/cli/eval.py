"""``edgepack eval``: how well variants of a bundle know a text, and how far each is from another variant or bundle.

They are loaded one after the other, beside the one that they are compared with.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli import losses
from edgepack.cli import plot as pictures
from edgepack.cli.help import examples
from edgepack.cli.options import AsJson, Backend, BundlePath, Context, KvCache, Threads, token_count
from edgepack.cli.screen import as_json, next_step, out, say, steps, styled, table

if TYPE_CHECKING:
    from edgepack.bundle.files import Bundle
    from edgepack.decoding.repro import Setup
    from edgepack.measuring.evaluate import EvalReport
    from edgepack.measuring.picture import Panel
    from edgepack.model import Model

Text = Annotated[Path, typer.Option(metavar="FILE", help="The text, in UTF-8.", show_default=False)]
Variants = Annotated[
    list[str] | None,
    typer.Option(
        "--variant",
        help="Only this variant, several times for several, or all that can run here. Default: the plan's first.",
        metavar="ID",
        show_default=False,
    ),
]
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
    str | None,
    typer.Option(help="Compare with the variant that runs on this engine.", metavar="ENGINE", show_default=False),
]
AgainstVariant = Annotated[
    str | None, typer.Option(help="Compare with this variant.", metavar="ID", show_default=False)
]
Limit = Annotated[
    int | None,
    typer.Option(
        help="Read only so many tokens of the text, as 4096 or 4k.",
        parser=token_count,
        metavar="TOKENS",
        show_default=False,
    ),
]


@examples(
    "edgepack eval demo.edgepack --text book.txt",
    "edgepack eval demo.edgepack --text book.txt -b gguf --against-backend onnx",
)
def eval(
    bundle: BundlePath,
    text: Text,
    backend: Backend = None,
    variant: Variants = None,
    against: Against = None,
    against_backend: AgainstBackend = None,
    against_variant: AgainstVariant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    limit: Limit = None,
    plot: pictures.Plot = None,
    json: AsJson = False,
) -> None:
    """Measure perplexity on your own text; against another bundle or variant, KL divergence and top-1 agreement.

    What the build measured against the source in float32, on a text of its own, stands beside.
    """
    from edgepack.bundle.files import open_bundle
    from edgepack.cli.textfile import read
    from edgepack.errors import ContextError, EngineMissingError
    from edgepack.isolation.isolate import available
    from edgepack.loading import load
    from edgepack.measuring.evaluate import evaluate

    pictures.check(plot)
    words = read(text)
    opened = open_bundle(bundle, verify="sizes")
    opening = partial(load, context=context, kv_cache=kv_cache, threads=threads, isolate=available())
    reports: list[EvalReport] = []
    left_out: dict[str, EngineMissingError | ContextError] = {}
    with ExitStack() as models, steps() as progress:
        task = progress.add_task("Loading", total=None)
        other = None
        if against or against_backend or against_variant:
            other = models.enter_context(opening(against or opened, against_backend, variant=against_variant))
        for name in _names(opened, backend, variant, other):
            try:
                model = opening(opened, backend, variant=name)
            except (EngineMissingError, ContextError) as error:
                if variant != [ALL]:
                    raise
                left_out[name or ""] = error
                continue
            with model:
                progress.update(task, description=model.setup.variant)
                reports.append(
                    evaluate(
                        model,
                        words,
                        against=other,
                        limit=limit,
                        progress=lambda done, total: progress.update(task, completed=done, total=total),
                    )
                )
    if not reports and left_out:
        raise next(iter(left_out.values()))
    if plot:
        pictures.write(plot, f"{opened.manifest.name} on {text.name}", _panels(reports))
    if json:
        reasons = {name: error.message for name, error in left_out.items()}
        as_json({"variants": [report.to_dict() for report in reports], "left_out": reasons})
    else:
        show(reports)
        for left, why in left_out.items():
            say(out(), styled("yellow", f"{left} was left out: {why}"))
        next_step("edgepack", "bench", str(bundle))


ALL = "all"


def _names(bundle: Bundle, backend: str | None, asked: list[str] | None, other: Model | None) -> list[str | None]:
    """Return the variants to evaluate, None for the plan's first. Of all, not the one that they are compared with."""
    if asked != [ALL]:
        return [*dict.fromkeys(asked)] if asked else [None]
    truth = None if other is None or other.bundle_id != bundle.id else other.setup.variant
    found = [each.id for each in bundle.manifest.variants if backend in (None, each.runtime) and each.id != truth]
    return [*found] or [None]


def _panels(reports: Sequence[EvalReport]) -> list[Panel]:
    from edgepack.measuring.picture import Bar, Panel

    known = [(report.model.setup.variant, report.model) for report in reports]
    lost = [(name, report.against) for (name, _), report in zip(known, reports, strict=True)]
    if other := reports[0].against:
        known.append((f"{other.other.setup.variant}, against", other.other))
    found = [Panel("perplexity", [Bar(name, each.perplexity, each.perplexity_error) for name, each in known])]
    if losses := [Bar(name, each.kl, each.kl_error) for name, each in lost if each]:
        found.append(Panel("KL divergence from the other, nats", losses))
    return found


def show(reports: Sequence[EvalReport]) -> None:
    """Print reports of one text: what each variant makes of it, how far it is from the other model, and what its build
    measured of it."""
    from rich.text import Text

    from edgepack.cli.inspect import loss_cells

    console, first, against = out(), reports[0], reports[0].against
    say(console, Text(Path(first.model.setup.bundle).name, "bold"))
    say(
        console,
        f"{first.tokens} tokens scored ({first.bytes} bytes), {first.windows} window(s) of at most {first.context}",
    )
    rows = table("variant", "runs on", "perplexity", "bits per byte")
    known = [(report.model.setup.variant, report.model) for report in reports]
    if against is not None:
        known.append((f"{against.other.setup.variant}, against", against.other))
    for name, each in known:
        of = each.setup
        figures = (each.perplexity, each.perplexity_error), (each.bits_per_byte, each.bits_per_byte_error)
        rows.add_row(name, f"{of.backend} on {of.device}", *map(losses.shown, figures))
    console.print()
    console.print(rows)
    if against is not None:
        console.print()
        say(console, Text(f"Against {described(against.other.setup)}:"))
        rows = table("variant", *losses.COLUMNS)
        for report in reports:
            if one := report.against:
                ratio = one.perplexity_ratio, one.perplexity_ratio_error
                rows.add_row(
                    report.model.setup.variant,
                    *losses.cells((one.kl, one.kl_error), (one.top1, one.top1_error), ratio),
                )
        console.print(rows)
    built = [(report.model.setup.variant, report.source) for report in reports if report.source]
    if built:
        console.print()
        say(console, Text("Against the source in float32, by the build, on the proof's own text (prose, a recipe):"))
        rows = table("variant", "tokens", *losses.COLUMNS, right=("tokens",))
        for name, loss in built:
            rows.add_row(name, str(loss.tokens), *loss_cells(loss))
        console.print(rows)
    ratios = [report.against.perplexity_ratio for report in reports if report.against]
    if remark := losses.remark([*ratios, *(loss.perplexity for _, loss in built)]):
        console.print()
        say(console, Text(remark, "dim"))


def described(setup: Setup) -> str:
    """Return what a model is and what it runs on, in a line."""
    return f"{Path(setup.bundle).name} {setup.variant}, {setup.backend} on {setup.device}"
