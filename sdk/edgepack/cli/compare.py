"""``edgepack compare``: the answers of two bundles, of two variants of one, or of models on servers, side by side."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgepack.cli.bench import described_server
from edgepack.cli.eval import described as described_bundle
from edgepack.cli.help import examples
from edgepack.cli.options import (
    ENGINE,
    SAMPLING,
    AsJson,
    Context,
    Date,
    KvCache,
    MaxTokens,
    MinP,
    Raw,
    RepetitionPenalty,
    Stop,
    Threads,
    TopK,
    TopP,
)
from edgepack.cli.screen import as_json, next_step, out, say, steps, table

if TYPE_CHECKING:
    from rich.console import RenderableType

    from edgepack.decoding.results import Result
    from edgepack.language_model import LanguageModel
    from edgepack.measuring.compare import Comparison, Pair, Prompt, Side

_WIDEST = 120
"""Columns in which two answers stand side by side."""

A = Annotated[str, typer.Argument(metavar="A", help="A bundle's folder, or the URL of a server.", show_default=False)]
B = Annotated[str, typer.Argument(metavar="B", help="Another's, or the same for two of its variants.")]
Prompts = Annotated[
    Path,
    typer.Option(
        metavar="FILE",
        help='One prompt on each line, or JSON Lines of {"prompt": "..."} and {"messages": [...]}.',
        show_default=False,
    ),
]
BackendA = Annotated[
    str | None,
    typer.Option(help="A's engine: gguf, onnx or mlx.", metavar="ENGINE", show_default=False, rich_help_panel=ENGINE),
]
BackendB = Annotated[
    str | None, typer.Option(help="B's engine.", metavar="ENGINE", show_default=False, rich_help_panel=ENGINE)
]
VariantA = Annotated[
    str | None, typer.Option(help="A's variant.", metavar="ID", show_default=False, rich_help_panel=ENGINE)
]
VariantB = Annotated[
    str | None, typer.Option(help="B's variant.", metavar="ID", show_default=False, rich_help_panel=ENGINE)
]
Temperature = Annotated[
    float, typer.Option(help="How far from the likeliest tokens; 0: never.", metavar="T", rich_help_panel=SAMPLING)
]
Seed = Annotated[int, typer.Option(help="The seed of each answer.", metavar="N", rich_help_panel=SAMPLING)]


@examples(
    "edgepack compare demo.edgepack other.edgepack --prompts prompts.txt",
    "edgepack compare demo.edgepack http://127.0.0.1:8000 --prompts prompts.txt",
)
def compare(
    a: A,
    b: B,
    prompts: Prompts,
    variant_a: VariantA = None,
    variant_b: VariantB = None,
    backend_a: BackendA = None,
    backend_b: BackendB = None,
    raw: Raw = False,
    date: Date = None,
    context: Context = None,
    kv_cache: KvCache = None,
    threads: Threads = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = 0.0,
    top_p: TopP = None,
    top_k: TopK = None,
    min_p: MinP = None,
    repetition_penalty: RepetitionPenalty = None,
    stop: Stop = None,
    seed: Seed = 0,
    json: AsJson = False,
) -> None:
    """Answer each prompt with two bundles, or servers, one after the other, and show both answers and their speed."""
    from edgepack.bundle.files import open_bundle
    from edgepack.cli.textfile import argument, read
    from edgepack.connecting import is_url
    from edgepack.errors import UsageError
    from edgepack.measuring.compare import compare as ask
    from edgepack.measuring.compare import prints_day, read_prompts

    asked = read_prompts(read(prompts))
    if date is not None and raw:
        raise UsageError("--date was given for a prompt without a chat template.", hint="Leave out --date or --raw.")
    bundles = [each for each in (a, b) if not is_url(each)]
    if (
        date is not None
        and len(bundles) == 2
        and not any(prints_day(open_bundle(each, verify="sizes").manifest) for each in bundles)
    ):
        raise UsageError("--date was given, and no chat template here prints a day.", hint="Leave it out.")
    loads = {"context": context, "kv_cache": kv_cache, "threads": threads}
    if not bundles and (given := next((name for name, value in loads.items() if value is not None), None)):
        raise UsageError(f"{given} was given, and what answers are servers.", hint=f"Leave out {given}.")
    opening = partial(_opened, context=context, kv_cache=kv_cache, threads=threads)
    with steps() as progress:
        task = progress.add_task("Answering", total=2 * len(asked))
        comparison = ask(
            partial(opening, a, backend_a, variant=variant_a),
            partial(opening, b, backend_b, variant=variant_b),
            asked,
            raw=raw,
            date=date,
            options={
                "max_tokens": max_tokens,
                "temperature": temperature,
                "top_p": top_p,
                "top_k": top_k,
                "min_p": min_p,
                "repetition_penalty": repetition_penalty,
                "stop": None if stop is None else [argument(each) for each in stop],
                "seed": seed,
            },
            progress=lambda: progress.advance(task),
        )
    if json:
        as_json(comparison.to_dict())
    else:
        show(comparison)
        next_step("edgepack", "bench", b)


def _opened(
    where: str, backend: str | None, variant: str | None, context: int | None, kv_cache: str | None, threads: int | None
) -> LanguageModel:
    from edgepack.connecting import is_url
    from edgepack.connecting import open as open_model
    from edgepack.isolation.isolate import available

    if is_url(where):
        return open_model(where, backend=backend, variant=variant)
    return open_model(
        where,
        backend=backend,
        variant=variant,
        context=context,
        kv_cache=kv_cache,
        threads=threads,
        isolate=available(),
    )


def show(comparison: Comparison) -> None:
    """Print a comparison: each prompt with both answers, from their first difference on in colour, then the medians."""
    from rich.text import Text

    console, a, b = out(), comparison.a, comparison.b
    console.width = min(console.width, _WIDEST)
    for name, side in (("A", a), ("B", b)):
        say(console, Text(f"{name}: {described(side)}", "bold"))
    for number, pair in enumerate(comparison.pairs, 1):
        console.print()
        console.rule(Text(f"{number}. {_words(pair.prompt)}", overflow="ellipsis"), align="left")
        console.print(_answers(pair))
        console.print(Text(_verdict(pair), "green" if pair.identical else "yellow"))
    medians = table("median", "A", "B", "", right=("A", "B"))
    medians.add_row("time to first token", _digits(a.ttft_s, 3), _digits(b.ttft_s, 3), "s")
    medians.add_row("prefill", _digits(a.prefill_tps, 1), _digits(b.prefill_tps, 1), "tokens/s")
    medians.add_row("decode", _digits(a.decode_tps, 1), _digits(b.decode_tps, 1), "tokens/s")
    console.print()
    console.print(medians)
    console.print()
    if a.served or b.served:
        say(console, "texts are compared, and not tokens: a server's tokenizer is not known")
    say(console, f"{comparison.identical} of {len(comparison.pairs)} answers are the same")


def described(side: Side) -> str:
    """Return what one side is, in a line."""
    if side.served is not None:
        return described_server(side.served)
    assert side.setup is not None  # it is one or the other
    return described_bundle(side.setup)


def _words(prompt: Prompt) -> str:
    """Return what a prompt asks, on one line: its text, or the last message's."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
    return " ".join(text.split())


def _answers(pair: Pair) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    from edgepack.prefix import common_length

    grid = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim", expand=True)
    grid.add_column("A", ratio=1, overflow="fold")
    grid.add_column("B", ratio=1, overflow="fold")
    common = common_length(pair.a.text, pair.b.text)
    grid.add_row(*(Text.assemble(each.text[:common], (each.text[common:], "yellow")) for each in (pair.a, pair.b)))
    grid.add_row(*(Text(_speed(each), "dim") for each in (pair.a, pair.b)))
    return grid


def _speed(result: Result) -> str:
    timings = result.timings
    return (
        f"{result.usage.completion_tokens} tokens, {result.finish_reason}; first after {_digits(timings.ttft_s, 3)} s, "
        f"prefill {_digits(timings.prefill_tps, 1)}, decode {_digits(timings.decode_tps, 1)} tokens/s"
    )


def _verdict(pair: Pair) -> str:
    if pair.identical:
        return "the same answer"
    if pair.first_difference is None:
        return "different answers"
    a, b = ("the end" if piece is None else repr(piece) for piece in pair.first_difference)
    return f"the same for {pair.common_tokens} tokens, then {a} and {b}"


def _digits(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
