"""``edgepack bench``: how fast a bundle answers on this machine, or a model on a server whoever asks it from here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli import plot as pictures
from edgepack.cli.help import examples
from edgepack.cli.options import MEASUREMENT, AsJson, Backend, BundleOrUrl, Context, KvCache, Threads, Variant
from edgepack.cli.screen import as_json, next_step, out, say, steps, styled, table

if TYPE_CHECKING:
    from edgepack.language_model import LanguageModel, Served
    from edgepack.measuring.bench import BenchReport, Spread
    from edgepack.measuring.picture import Panel
    from edgepack.measuring.served import ServedReport

Prompt = Annotated[
    int,
    typer.Option(
        "--prompt-tokens",
        min=1,
        help="Tokens of the prompt, clipped to the context.",
        metavar="N",
        rich_help_panel=MEASUREMENT,
    ),
]
Decode = Annotated[
    int,
    typer.Option(
        "--decode-tokens",
        min=2,
        help="Tokens to generate, clipped to the context.",
        metavar="N",
        rich_help_panel=MEASUREMENT,
    ),
]
Repeats = Annotated[int, typer.Option(min=1, help="Runs after the warm-up.", metavar="N", rich_help_panel=MEASUREMENT)]


@examples(
    "edgepack bench demo.edgepack",
    "edgepack bench demo.edgepack -b gguf --threads 2 --prompt-tokens 512 --json",
    "edgepack bench http://127.0.0.1:8080",
)
def bench(
    bundle: BundleOrUrl,
    backend: Backend = None,
    variant: Variant = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    prompt_tokens: Prompt = 128,
    decode_tokens: Decode = 64,
    repeats: Repeats = 5,
    plot: pictures.Plot = None,
    json: AsJson = False,
) -> None:
    """Measure loading, prefill, decoding and memory, and compare decoding with what the memory allows. Of a server:
    what reaches this machine."""
    from edgepack.bundle.files import open_bundle
    from edgepack.connecting import is_url
    from edgepack.connecting import open as open_model
    from edgepack.errors import UsageError
    from edgepack.loading import plan
    from edgepack.measuring.bench import Job, bench_apart

    if is_url(bundle):
        if plot is not None:
            raise UsageError("--plot was given, and what answers is a server.", hint="Leave it out.")
        with open_model(
            bundle, backend=backend, variant=variant, context=context, kv_cache=kv_cache, threads=threads
        ) as model:
            _bench_server(model, prompt_tokens, decode_tokens, repeats, json)
        return
    pictures.check(plot)
    opened = open_bundle(bundle, verify="sizes")
    chosen = plan(opened, backend=backend, variant=variant, context=context, kv_cache=kv_cache).choice
    with steps() as progress:
        progress.add_task(f"Running {chosen.variant}", total=None)
        report = bench_apart(Job(str(opened.path), chosen, threads, prompt_tokens, decode_tokens, repeats))
    if plot:
        pictures.write(plot, f"{opened.manifest.name}, {report.variant}", _panels(report))
    if json:
        as_json(report)
    else:
        show(report)
        if chosen.hint:
            say(out(), styled("dim", f"\n{chosen.hint}"))
        next_step("edgepack", "tune", bundle)


def _bench_server(model: LanguageModel, prompt_tokens: int, decode_tokens: int, repeats: int, json: bool) -> None:
    from edgepack.measuring.bench import WARM_UP
    from edgepack.measuring.served import bench_served

    with steps() as progress:
        task = progress.add_task("Asking", total=WARM_UP + repeats)
        report = bench_served(
            model,
            prompt_tokens=prompt_tokens,
            decode_tokens=decode_tokens,
            repeats=repeats,
            progress=lambda: progress.advance(task),
        )
    if json:
        as_json(report.to_dict())
    else:
        show_served(report)


def show_served(report: ServedReport) -> None:
    """Print what a model on a server reached, one line for each figure."""
    console = out()
    say(console, styled("bold", described_server(report.served)))
    say(
        console,
        f"prompt {report.prompt_tokens} tokens, answer {report.answer_tokens} tokens, as the server counts; "
        f"median and standard deviation of {report.repeats} runs",
    )
    rows = table("", "median", "±", "", right=("median", "±"))
    for name, spread, digits, unit in (
        ("time to first token", report.ttft_s, 3, "s"),
        ("time to answer", report.answer_s, 3, "s"),
        ("prefill, by the server", report.prefill_tps, 1, "tokens/s"),
        ("decode", report.decode_tps, 1, "tokens/s"),
        ("between pieces, p50", report.between_p50_ms, 2, "ms"),
        ("between pieces, p95", report.between_p95_ms, 2, "ms"),
    ):
        if spread is not None:
            rows.add_row(name, *_digits(spread, digits), unit)
    console.print()
    console.print(rows)


def described_server(served: Served) -> str:
    """Return what is asked over a network, in a line."""
    server = " ".join(filter(None, (served.server, served.version)))
    return f"{served.model}, {server} at {served.url}"


def show(report: BenchReport) -> None:
    """Print a report: how it was measured, then one line for each figure."""
    from edgepack.device.memory import human

    console = out()
    options, engine = report.options, report.package or f"{report.runtime} {report.engine}"
    say(
        console,
        styled(
            "bold",
            report.variant,
            f"  {engine} on {report.device}, {options.threads} thread(s), "
            f"context {options.context}, KV cache {options.kv_cache}",
        ),
    )
    say(
        console,
        f"prompt {report.prompt_tokens} tokens, answer {report.decode_tokens} tokens, "
        f"median and standard deviation of {report.repeats} runs",
    )
    rows = table("", "median", "±", "", right=("median", "±"))
    rows.add_row("load", f"{report.load_s:.3f}", "", "s")
    for name, spread, digits, unit in (
        ("time to first token", report.ttft_s, 3, "s"),
        ("time to answer", report.answer_s, 3, "s"),
        *((name, spread, 1, "tokens/s") for name, spread in _speeds(report)),
        *((name, spread, 2, "ms") for name, spread in _waits(report)),
    ):
        rows.add_row(name, *_digits(spread, digits), unit)
    sizes = [("peak memory", report.peak_rss, ""), ("read per token", report.bytes_per_token, "")]
    if report.bandwidth:
        sizes.append(("memory reads at", round(report.bandwidth), "/s"))
    for name, count, unit in sizes:
        figure, size = human(count).split()
        rows.add_row(name, figure, "", size + unit)
    if report.roofline:
        rows.add_row("of the roofline", f"{report.roofline:.1%}".removesuffix("%"), "", "%")
    console.print()
    console.print(rows)
    for line in _warnings(report):
        say(console, styled("yellow", line))


def _panels(report: BenchReport) -> list[Panel]:
    from edgepack.measuring.picture import Bar, Panel

    speeds = [Bar(name, each.median, each.deviation) for name, each in _speeds(report)]
    if report.roofline:
        speeds.append(Bar("decode, at most", report.decode_tps.median / report.roofline))
    return [
        Panel("tokens a second", speeds),
        Panel("milliseconds", [Bar(name, each.median, each.deviation) for name, each in _waits(report)]),
    ]


def _speeds(report: BenchReport) -> list[tuple[str, Spread]]:
    return [("prefill", report.prefill_tps), ("decode", report.decode_tps)]


def _waits(report: BenchReport) -> list[tuple[str, Spread]]:
    return [
        ("between tokens, p50", report.inter_token_p50_ms),
        ("between tokens, p95", report.inter_token_p95_ms),
    ]


def _warnings(report: BenchReport) -> list[str]:
    warnings = []
    if report.busy:
        warnings.append(f"Other programs took {report.neighbours:.1f} cores meanwhile: alone it would be faster.")
    if report.bandwidth is None:
        warnings.append("No roofline: other programs left no quiet moment in which to measure the memory.")
    return warnings


def _digits(spread: Spread, digits: int) -> tuple[str, str]:
    return f"{spread.median:.{digits}f}", f"{spread.deviation:.{digits}f}"
